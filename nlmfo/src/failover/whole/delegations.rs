//! Gets delegations back from the clients before a stop, so that the record has every lock: a
//! client with a delegation locks without asking the server.

use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::debug;

use crate::failover::watch::Watch;
use crate::kernel::path::{LockedFile, PathFinder};
use crate::observe::states::{Kind, State};

/// Maximum time for the clients to return their delegations.
const TIMEOUT: Duration = Duration::from_secs(5);

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum time to read NFSv4 state again while it changes.
const READ_TIMEOUT: Duration = Duration::from_millis(500);

/// Recalls all delegations and waits until they are back, for a few seconds. A client that returns
/// one sends the locks that it had behind it. While leases are paused, nobody gets a new one.
pub async fn recall(watch: &mut Watch) {
    let until = Instant::now() + TIMEOUT;
    // Files that are open have a name in the kernel's cache.
    let Ok(mut paths) = PathFinder::new(0) else {
        return;
    };
    loop {
        // The record tells later why it cannot be read, and which delegations are left.
        let Ok(states) = watch.all_states(READ_TIMEOUT) else {
            return;
        };
        let held = states.table.states.iter().filter(|state| state.is_held());
        let delegations = held.filter(|state| state.kind == Kind::Delegation);
        let files: Vec<LockedFile> = delegations
            .filter_map(|state: &State| Some(state.file.as_ref()?.into()))
            .collect();
        if files.is_empty() || Instant::now() >= until {
            return;
        }
        for path in paths.find_all(&files).into_iter().flatten() {
            // Opening a file for writing breaks its leases. It fails while there is one, and
            // does not wait for its end.
            let opened = std::fs::OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW)
                .open(&path);
            debug!(path = %path.display(), ?opened, "recalled a delegation");
        }
        sleep(POLL_INTERVAL).await;
    }
}
