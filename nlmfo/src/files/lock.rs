//! Lock files in [`run`](super::run). The files stay; the kernel releases the lock on one when
//! its process ends, for whatever reason.
//!
//! The kernel's list of locks tells who holds a lock, not the content of the file.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::time::sleep;

use super::run::{self, RunError};
use super::{FileError, PRIVATE};
use crate::kernel::locks;

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Why a lock file could not be locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("another nlmfo {does}{who}{}", after(.waited))]
    Busy {
        does: String,
        who: Holders,
        waited: Duration,
    },
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// Whether others may hold the lock at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Shared,
    Exclusive,
}

/// A file that processes lock.
#[derive(Clone, Debug)]
pub struct LockFile {
    path: PathBuf,
    /// What its holder does, for messages: "is running".
    does: String,
}

/// Held until dropped.
#[derive(Debug)]
#[must_use = "it is released when dropped"]
pub struct Held {
    file: File,
    path: PathBuf,
}

impl LockFile {
    /// `NAME.lock` in our directory. `does` is for messages: "is running".
    pub fn named(name: &str, does: impl Into<String>) -> Result<Self, LockError> {
        Ok(LockFile {
            path: run::file(&format!("{name}.lock"))?,
            does: does.into(),
        })
    }

    /// `None` if another process has it.
    pub fn try_take(&self, mode: Mode) -> Result<Option<Held>, LockError> {
        let failed = || FileError::io("locking", &self.path);
        let file = self.open().map_err(failed())?;
        let operation = match mode {
            Mode::Shared => FlockOperation::NonBlockingLockShared,
            Mode::Exclusive => FlockOperation::NonBlockingLockExclusive,
        };
        match flock(&file, operation) {
            Ok(()) => Ok(Some(Held {
                file,
                path: self.path.clone(),
            })),
            Err(Errno::WOULDBLOCK) => Ok(None),
            Err(errno) => Err(failed()(errno.into()).into()),
        }
    }

    /// Waits for up to `max_wait`.
    pub async fn take(&self, mode: Mode, max_wait: Duration) -> Result<Held, LockError> {
        let until = Instant::now() + max_wait;
        loop {
            if let Some(held) = self.try_take(mode)? {
                return Ok(held);
            }
            if Instant::now() >= until {
                return Err(LockError::Busy {
                    does: self.does.clone(),
                    who: self.holders(),
                    waited: max_wait,
                });
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// The processes that hold it now.
    pub fn holders(&self) -> Holders {
        let Ok(file) = self.open().and_then(|file| file.metadata()) else {
            return Holders::default();
        };
        let holders = locks::flock_holders(file.dev(), file.ino()).into_iter();
        // A process that has ended has no command line and holds nothing.
        Holders(
            holders
                .filter_map(|pid| Some((pid, locks::command_line(pid)?)))
                .collect(),
        )
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(PRIVATE)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.path)
    }
}

impl Held {
    /// The note of the previous holder, or of this one.
    pub fn note(&self) -> Result<String, FileError> {
        let mut note = String::new();
        let mut file = &self.file;
        (file.rewind().and_then(|()| file.read_to_string(&mut note)))
            .map_err(FileError::io("reading", &self.path))?;
        Ok(note)
    }

    /// Leaves a note for the next holder.
    pub fn set_note(&self, note: &str) -> Result<(), FileError> {
        let mut file = &self.file;
        (file.set_len(0).and_then(|()| file.rewind()))
            .and_then(|()| file.write_all(note.as_bytes()))
            .map_err(FileError::io("writing", &self.path))
    }
}

/// The holders of a lock: process IDs with command lines. Empty if none is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders(Vec<(u32, String)>);

impl Holders {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Holders {
    /// Formatted to be appended: ` (pid 7: nlmfo …)`, or nothing.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self
            .0
            .iter()
            .map(|(pid, command)| format!("pid {pid}: {command}"));
        match named.collect::<Vec<_>>().join(", ") {
            none if none.is_empty() => Ok(()),
            named => write!(f, " ({named})"),
        }
    }
}

fn after(time: &Duration) -> String {
    match time.as_secs_f64() {
        0.0 => ": wait until it has finished".to_owned(),
        seconds => format!(", and did not finish within {seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock_in(folder: &tempfile::TempDir) -> LockFile {
        LockFile {
            path: folder.path().join("one.lock"),
            does: "is running".into(),
        }
    }

    #[tokio::test]
    async fn the_second_waits_and_is_told_who_is_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let lock = lock_in(&folder);
        let first = lock.try_take(Mode::Exclusive).unwrap().unwrap();
        assert!(lock.try_take(Mode::Shared).unwrap().is_none());
        let busy = lock.take(Mode::Exclusive, Duration::from_millis(50)).await;
        let error = busy.unwrap_err();
        let pid = std::process::id().to_string();
        assert!(
            error.to_string().contains(&format!("(pid {pid}: ")),
            "{error}"
        );
        drop(first);
        assert_eq!(lock.holders(), Holders::default());
        let first = lock.try_take(Mode::Shared).unwrap().unwrap();
        let second = lock.try_take(Mode::Shared).unwrap().unwrap();
        assert!(lock.try_take(Mode::Exclusive).unwrap().is_none());
        drop((first, second));
        let minute = Duration::from_mins(1);
        drop(lock.take(Mode::Exclusive, minute).await.unwrap());
    }

    #[test]
    fn what_the_file_says_tells_nothing_of_who_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let lock = lock_in(&folder);
        let held = lock.try_take(Mode::Exclusive).unwrap().unwrap();
        held.set_note("pid 1: something long").unwrap();
        held.set_note("a note").unwrap();
        drop(held);
        assert_eq!(lock.holders().to_string(), "");
        let held = lock.try_take(Mode::Exclusive).unwrap().unwrap();
        assert_eq!(held.note().unwrap(), "a note");
    }
}
