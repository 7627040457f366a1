//! `nlmfo cleanup`: remove everything that nlmfo left in the kernel.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use super::require_root;
use crate::causes::chain;
use crate::cli::CleanupArgs;
use crate::exit::{Exit, Failure};
use crate::failover::exclusive;
use crate::failover::interrupted::or_interrupt;
use crate::failover::whole::leases;
use crate::files::{self, remove_abandoned};
use crate::foreign::Shown;
use crate::grace::leftovers;
use crate::grace::lock::TIMEOUT;
use crate::notify::state_dir::StateDir;
use crate::release::Turn;
use crate::release::route::{self, Removed};
use crate::{interrupt, output, runtime, server};

/// The JSON of `nlmfo cleanup`.
#[derive(Serialize)]
struct Cleaned {
    schema: &'static str,
    removed: Removed,
    /// Pins and filters of the grace gate.
    gate: usize,
    /// Files that a killed nlmfo was writing.
    files: usize,
    /// Servers in namespaces of their own that were killed.
    servers: usize,
    /// Leases and delegations, which a killed nlmfo had paused, were resumed.
    leases: bool,
    /// Why the keeper has not ended; null if it has.
    keeper: Option<String>,
}

pub fn run(args: &CleanupArgs) -> Result<Exit, Failure> {
    require_root()?;
    // Only the gate's probes outlive their process. The routes of a release can be left behind too, and
    // a running release still needs them.
    let servers = server::cleanup().map_err(anyhow::Error::from)?;
    let work = async {
        let _alone = exclusive::alone().await.map_err(anyhow::Error::from)?;
        // `grace` may open windows at the same time.
        let turn = Turn::take(TIMEOUT).await.map_err(anyhow::Error::from)?;
        let routes = route::cleanup().await;
        let removed = routes.context("cannot remove nlmfo's routing rules")?;
        drop(turn);
        let gate = leftovers::cleanup().await?;
        let leases = leases::resume().context("resuming leases")?;
        let files = (abandoned(&args.state.state_dir)).context("removing temporary files")?;
        // Last, since the keeper needs a moment to see that its gate is gone.
        let keeper = leftovers::keeper_ended().await.err();
        let keeper = keeper.map(|error| chain(&error));
        Ok((removed, gate, files, leases, keeper))
    };
    let work = or_interrupt(work, &[], "some items may remain; run the command again");
    let (removed, gate, files, leases, keeper) =
        runtime::run(work).context("starting the asynchronous runtime")??;
    let exit = match keeper {
        None => Exit::Done,
        Some(_) => Exit::NotConfirmed,
    };
    interrupt::work_is_done(exit as u8);
    if args.json {
        let cleaned = Cleaned {
            schema: "nlmfo.cleanup/1",
            removed,
            gate,
            files,
            servers,
            leases,
            keeper,
        };
        output::report_json(None, &cleaned);
        return Ok(exit);
    }
    output::report(None, |out| {
        if !removed.is_nothing() {
            writeln!(
                out,
                "removed {} routing rules, {} routes and {} devices of a killed nlmfo",
                removed.rules, removed.routes, removed.devices
            )?;
        }
        if gate > 0 {
            writeln!(out, "removed the gate: {gate} pinned objects and filters")?;
        }
        if files > 0 {
            writeln!(out, "removed {files} unfinished files of a killed nlmfo")?;
        }
        if servers > 0 {
            writeln!(
                out,
                "killed {servers} servers in namespaces of their own; their records are kept"
            )?;
        }
        if leases {
            writeln!(out, "resumed delegations (fs.leases-enable)")?;
        }
        if removed.is_nothing() && gate + files + servers == 0 && !leases {
            writeln!(out, "nothing to remove")?;
        }
        if let Some(keeper) = &keeper {
            writeln!(out, "✗ NOT CONFIRMED: {keeper}")?;
        }
        Ok(())
    });
    Ok(exit)
}

/// Removes temporary files from our directories. Returns how many.
fn abandoned(state: &Path) -> anyhow::Result<usize> {
    let state = StateDir::new(state);
    let mut folders = vec![files::run::folder().to_owned(), state.path().to_owned()];
    folders.push(state.numbers());
    folders.extend(state.vips()?.into_iter().map(|vip| state.vip(vip)));
    let mut removed = 0;
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        removed += remove_abandoned(folder).with_context(|| folder.shown().to_string())?;
    }
    Ok(removed)
}
