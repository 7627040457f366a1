//! Recalls delegations before a stop, so that the record has every lock: a client with a delegation
//! locks without asking the server.

use std::collections::BTreeSet;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::debug;

use crate::failover::watch::Watch;
use crate::kernel::path::{LockedFile, PathFinder};
use crate::observe::states::{Kind, State, StateTable};

/// Maximum time for the clients to return their delegations.
const TIMEOUT: Duration = Duration::from_secs(5);

const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Maximum time to read NFSv4 state again while it changes.
const READ_TIMEOUT: Duration = Duration::from_millis(500);

/// Recalls all delegations, and waits a few seconds for their return. A client that returns one first
/// sends the locks that it covered. While leases are paused, no client gets a new one.
pub async fn recall(watch: &mut Watch) {
    let until = Instant::now() + TIMEOUT;
    // Files that are open have a name in the kernel's cache.
    let Ok(mut paths) = PathFinder::new(0) else {
        return;
    };
    loop {
        // The record reports later why it cannot be read, and which delegations are left.
        let Ok(states) = watch.all_states(READ_TIMEOUT) else {
            return;
        };
        let mut table = states.table;
        remove_directories(&mut table, &mut paths);
        let held = table.states.iter().filter(|state| state.is_held());
        let files = delegated(held);
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

/// The files of the delegations among the states.
fn delegated<'a>(states: impl Iterator<Item = &'a State>) -> Vec<LockedFile> {
    let delegations = states.filter(|state| state.kind == Kind::Delegation);
    delegations
        .filter_map(|state| Some(state.file.as_ref()?.into()))
        .collect()
}

/// Removes the delegations of directories, which Linux 7.3 gives: they let a client cache
/// names. There are no locks behind them, and no client reclaims them.
pub fn remove_directories(table: &mut StateTable, paths: &mut PathFinder) {
    let files = delegated(table.states.iter());
    let found = paths.find_all(&files);
    let is_directory = |path: &PathBuf| path.symlink_metadata().is_ok_and(|found| found.is_dir());
    let inode = |file: &LockedFile| (file.device, file.inode);
    let directories: BTreeSet<(u32, u64)> = (files.iter().zip(found))
        .filter(|(_, path)| path.as_ref().is_ok_and(is_directory))
        .map(|(file, _)| inode(file))
        .collect();
    table.states.retain(|state| {
        let file = || state.file.as_ref().map(LockedFile::from);
        state.kind != Kind::Delegation
            || !file().is_some_and(|file| directories.contains(&inode(&file)))
    });
}
