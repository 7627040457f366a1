//! Locks between nlmfo processes: who may change the gate of this network namespace, and
//! the one keeper.

use std::time::Duration;

use super::GraceError;
use crate::files::lock::{Held, Holders, LockFile, Mode};
use crate::kernel::netns;

/// Maximum wait for a lock that each run holds only for moments.
pub const TIMEOUT: Duration = Duration::from_mins(1);

/// A lock between nlmfo processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessLock {
    /// Held for moments by a run that changes windows or attachments.
    Gate,
    /// Held by the keeper while it runs.
    Keeper,
}

impl ProcessLock {
    /// Waits for up to `max_wait`.
    pub async fn take(self, max_wait: Duration) -> Result<Held, GraceError> {
        Ok(self.file()?.take(Mode::Exclusive, max_wait).await?)
    }

    /// `None` if another process holds it.
    pub fn try_take(self) -> Result<Option<Held>, GraceError> {
        Ok(self.file()?.try_take(Mode::Exclusive)?)
    }

    /// The processes that hold it now, as far as this process can see them.
    pub fn holders(self) -> Result<Holders, GraceError> {
        Ok(self.file()?.holders())
    }

    fn file(self) -> Result<LockFile, GraceError> {
        let cookie = netns::cookie().map_err(GraceError::Namespace)?;
        let (name, does) = match self {
            ProcessLock::Gate => ("gate", "is changing the gate"),
            ProcessLock::Keeper => ("keeper", "is keeping the gate"),
        };
        Ok(LockFile::named(&format!("{name}-{cookie}"), does)?)
    }
}
