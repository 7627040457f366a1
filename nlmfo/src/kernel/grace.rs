//! The kernel's own two grace periods.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::lockd::{self, LockdError};
use super::nfsd::{Nfsd, NfsdError};

/// Which of them are open in this network namespace. Each refuses new locks of all versions.
///
/// `T` is `bool`, or `Option<bool>` for what may not be known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grace<T = bool> {
    pub lockd: T,
    pub nfsd: T,
}

/// The grace periods that can be read.
pub type SeenGrace = Grace<Option<bool>>;

impl Grace {
    pub fn read<E: From<LockdError> + From<NfsdError>>() -> Result<Self, E> {
        let nfsd = Nfsd::mounted()?;
        Ok(Grace {
            lockd: match lockd::in_grace() {
                Ok(stands) => stands,
                // lockd is loaded with NFSv3 only.
                Err(LockdError::NotLoaded) => false,
                Err(error) => return Err(error.into()),
            },
            nfsd: !nfsd.v4_grace_ended()?,
        })
    }

    pub fn stands(&self) -> bool {
        self.lockd || self.nfsd
    }
}

impl SeenGrace {
    /// What can be read now, for display.
    pub fn now() -> Self {
        let nfsd = Nfsd::mounted().and_then(|nfsd| nfsd.v4_grace_ended());
        Grace {
            lockd: lockd::in_grace().ok(),
            nfsd: nfsd.ok().map(|ended| !ended),
        }
    }

    /// Whether one of them is open.
    pub fn stands(&self) -> bool {
        [self.lockd, self.nfsd].contains(&Some(true))
    }
}

impl fmt::Display for SeenGrace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |state| match state {
            Some(true) => "in grace",
            Some(false) => "not in grace",
            None => "unknown",
        };
        write!(
            f,
            "kernel grace: lockd {}, nfsd {}",
            word(self.lockd),
            word(self.nfsd)
        )
    }
}
