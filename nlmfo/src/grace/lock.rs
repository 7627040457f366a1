//! Who may change the gate of this network namespace: one at a time, and one keeper.

use std::time::Duration;

use super::GraceError;
use crate::files::lock::{Held, LockFile, Mode};
use crate::kernel::netns;

/// For a lock that is held for moments, by many runs one after another.
pub const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Whoever changes windows or attachments: for moments only.
    Gate,
    /// The keeper, for as long as it runs.
    Keeper,
}

impl Lock {
    /// Waits for it, for that long at most.
    pub async fn take(self, patience: Duration) -> Result<Held, GraceError> {
        Ok(self.file()?.take(Mode::Exclusive, patience).await?)
    }

    /// `None` if another has it.
    pub fn try_take(self) -> Result<Option<Held>, GraceError> {
        Ok(self.file()?.try_take(Mode::Exclusive)?)
    }

    fn file(self) -> Result<LockFile, GraceError> {
        let cookie = netns::cookie().map_err(GraceError::Namespace)?;
        let (name, does) = match self {
            Lock::Gate => ("gate", "changes the grace gate"),
            Lock::Keeper => ("keeper", "follows network devices"),
        };
        Ok(LockFile::named(&format!("{name}-{cookie}"), does)?)
    }
}
