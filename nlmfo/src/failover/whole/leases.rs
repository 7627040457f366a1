//! No new delegations from before the stop until the clients have reclaimed.
//!
//! nfsd gives a delegation with a reclaimed OPEN if it can, also to a client that had none before
//! (`nfs4_open_delegation`, fs/nfsd/nfs4state.c, write delegations from 6.12 on). If another
//! client then reclaims on the same file, the delegation is recalled; to return it, its holder
//! sends its locks as new ones, and these are refused until grace is over. So nobody gets a lock
//! back on a file that several clients share. Without leases there are no delegations, and every
//! client reclaims its locks. A client whose delegation does not come back does not reclaim the
//! locks that it has behind it (Linux 6.12): [`super::delegations`] gets those to the server before the
//! stop.

use std::time::Duration;

use crate::causes::chain;
use crate::files::lock::{Held, LockError, LockFile, Mode};
use crate::files::{FileError, run::RunError};
use crate::kernel::leases;
use crate::output;

/// The lock file's note while leases are paused.
const PAUSED: &str = "paused";

/// Maximum time to wait for another command to pause or resume.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Why leases could not be paused or resumed.
#[derive(Debug, thiserror::Error)]
pub enum LeasesError {
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error("cannot {action} fs.leases-enable")]
    Sysctl {
        action: &'static str,
        source: std::io::Error,
    },
}

/// Leases are paused until all of these are dropped, in this command and others.
#[derive(Debug)]
pub struct Paused(Option<Held>);

fn file() -> Result<LockFile, LockError> {
    LockFile::named("leases", "pauses leases")
}

fn sysctl(action: &'static str) -> impl FnOnce(std::io::Error) -> LeasesError {
    move |source| LeasesError::Sysctl { action, source }
}

/// [`try_pause`]; none if they cannot be paused, which is said.
pub async fn pause() -> Option<Paused> {
    let paused = try_pause().await;
    let failed = |error| {
        output::note(format_args!(
            "delegations are not paused: {}",
            chain(&error)
        ));
    };
    paused.map_err(failed).ok()
}

/// Pauses leases or keeps them paused if `wanted`; otherwise resumes them.
pub async fn pause_if(wanted: bool, paused: Option<Paused>) -> Option<Paused> {
    match paused {
        Some(paused) if wanted => Some(paused),
        None if wanted => pause().await,
        // A pause of an earlier command ends too.
        other => {
            drop(other);
            if let Err(error) = resume() {
                output::note(chain(&error));
            }
            None
        }
    }
}

/// Pauses leases, unless the administrator has switched them off.
pub async fn try_pause() -> Result<Paused, LeasesError> {
    let held = file()?.take(Mode::Shared, MAX_WAIT).await?;
    if leases::are_enabled().map_err(sysctl("read"))? {
        // The note first: if this process is killed, the next one resumes.
        held.set_note(PAUSED)?;
        leases::enable(false).map_err(sysctl("write"))?;
    }
    Ok(Paused(Some(held)))
}

impl Paused {
    /// Leaves them paused for a later command.
    pub fn keep(mut self) -> Option<Self> {
        self.0 = None;
        None
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let Some(held) = self.0.take() else { return };
        drop(held);
        if let Err(error) = resume() {
            output::note(format_args!(
                "delegations remain paused (`nlmfo cleanup`): {}",
                chain(&error)
            ));
        }
    }
}

/// Resumes leases that a command paused and that no command needs paused any more. Returns whether they
/// were paused.
pub fn resume() -> Result<bool, LeasesError> {
    let Some(held) = file()?.try_take(Mode::Exclusive)? else {
        return Ok(false);
    };
    if held.note()? != PAUSED {
        return Ok(false);
    }
    leases::enable(true).map_err(sysctl("write"))?;
    held.set_note("")?;
    Ok(true)
}
