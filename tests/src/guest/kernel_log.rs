//! The kernel log of this machine's clients.

use std::process::Command;

use anyhow::{Result, ensure};

use super::command::run;

/// What a client's lockd says of a lock that it could not reclaim and will not try again
/// (`nlmclnt_reclaim` in fs/lockd/clntproc.c, 6.1). The server may still hold it, and the application
/// believes so, but it is lost at the next move.
const REFUSED: &str = "failed to reclaim lock";

/// Checks that no client of this machine was refused a reclaim.
pub fn ensure_no_reclaim_refused() -> Result<()> {
    let log = run(&mut Command::new("dmesg"))?;
    let refused: Vec<&str> = log.lines().filter(|line| line.contains(REFUSED)).collect();
    ensure!(refused.is_empty(), "reclaims were refused: {refused:#?}");
    Ok(())
}
