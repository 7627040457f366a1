//! Who may change the gate of this network namespace: one at a time, and one keeper.

use std::fs::{File, OpenOptions};
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::GraceError;
use crate::kernel::netns;

/// The files stay; the kernel's lock on one goes with the process that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// Whoever changes windows or attachments: for moments only.
    Gate,
    /// The keeper, for as long as it runs.
    Keeper,
}

/// Held until dropped.
#[derive(Debug)]
#[must_use = "it is released when dropped"]
pub struct Held {
    _file: File,
}

impl Lock {
    /// Waits for it.
    pub fn take(self) -> Result<Held, GraceError> {
        let (file, path) = self.open()?;
        loop {
            match flock(&file, FlockOperation::LockExclusive) {
                Ok(()) => return Ok(Held { _file: file }),
                Err(Errno::INTR) => {}
                Err(errno) => {
                    return Err(GraceError::File {
                        path,
                        source: errno.into(),
                    });
                }
            }
        }
    }

    /// `None` if another has it.
    pub fn try_take(self) -> Result<Option<Held>, GraceError> {
        let (file, path) = self.open()?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Held { _file: file })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(GraceError::File {
                path,
                source: errno.into(),
            }),
        }
    }

    fn open(self) -> Result<(File, PathBuf), GraceError> {
        let cookie = netns::cookie().map_err(GraceError::Namespace)?;
        let kind = match self {
            Lock::Gate => "gate",
            Lock::Keeper => "keeper",
        };
        let path = PathBuf::from(format!("/run/nlmfo-{kind}-{cookie}.lock"));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(|source| GraceError::File {
                path: path.clone(),
                source,
            })?;
        Ok((file, path))
    }
}
