//! One run at a time makes lockd give up locks or waiters: what is gone after a turn is its own
//! doing, or that of clients. A detour has fixed names for its table and device, and the
//! kernel's files act on the whole node.
//!
//! lockd is one thread, and a turn is a few looks and what is asked of it: runs lose little by
//! waiting for each other.

use std::time::Duration;

use super::Error;
use crate::files::lock::{Held, LockFile, Mode};

/// Held while locks are released and looked at.
#[derive(Debug)]
#[must_use = "it is over when this is dropped"]
pub struct Turn {
    _held: Held,
}

impl Turn {
    /// Waits for that long at most.
    pub async fn take(patience: Duration) -> Result<Self, Error> {
        let file = LockFile::named("release", "releases locks")?;
        Ok(Turn {
            _held: file.take(Mode::Exclusive, patience).await?,
        })
    }
}
