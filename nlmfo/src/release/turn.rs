//! Only one run at a time makes lockd release locks or waiters: what is gone after a turn was released
//! by that run, or by clients. Also, the names of a detour's table and device are fixed, and the
//! kernel's files act on the whole node.
//!
//! lockd has one thread, and a turn is a few snapshots and calls, so waiting for a turn costs little.

use std::time::Duration;

use super::Error;
use crate::files::lock::{Held, LockFile, Mode};

/// Held while locks are released and checked.
#[derive(Debug)]
#[must_use = "the turn ends when this is dropped"]
pub struct Turn {
    _held: Held,
}

impl Turn {
    /// Waits for up to `max_wait`.
    ///
    /// # Errors
    /// If another run holds it for all that time, or the lock file cannot be opened.
    pub async fn take(max_wait: Duration) -> Result<Self, Error> {
        let file = LockFile::named("release", "is releasing locks")?;
        Ok(Turn {
            _held: file.take(Mode::Exclusive, max_wait).await?,
        })
    }
}
