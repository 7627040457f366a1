//! nfs-utils' `sm-notify`, which runs once after each boot. Later than our start, it would move
//! the clients that statd monitors again to its own list, and notify them: they would reclaim
//! when grace is over, and be refused.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use super::server::ServerError;
use crate::causes::chain;
use crate::files::{self, PRIVATE};
use crate::server::program::run_within;

/// Exists when `sm-notify` has run since the boot: it then does nothing (`-f`, sm-notify(8)).
const RAN: &str = "/run/sm-notify.pid";

/// In grace: has it notify what is on statd's list, which it does in the background. Without
/// `listed` clients it has nothing to do but to end lockd's grace: it is marked as done.
pub(super) async fn have_done(listed: bool, deadline: Duration) -> Result<(), ServerError> {
    let path = Path::new(RAN);
    if path.exists() {
        return Ok(());
    }
    if listed {
        return Ok(run_within::<&str>("sm-notify", &[], deadline).await?);
    }
    let pid = format!("{}\n", std::process::id());
    match files::create_new(path, pid.as_bytes(), PRIVATE, |_| ()) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            let why = format!("cannot create {RAN}: {}", chain(&error));
            Err(ServerError::Other(why))
        }
        _ => Ok(()),
    }
}
