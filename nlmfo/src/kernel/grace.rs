//! The kernel's own two grace periods.

use serde::Serialize;

use super::lockd::{self, LockdError};
use super::nfsd::{Nfsd, NfsdError};

/// Which of them stand in this network namespace. Each refuses new locks of all versions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Grace {
    pub lockd: bool,
    pub nfsd: bool,
}

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
