//! One changing run at a time: two would undo each other's routing rules and
//! misread each other's releases.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use tokio::time::sleep;

/// Where the lock file is. It stays; the kernel's lock on it goes with the
/// process, however that ends.
const PATH: &str = "/run/nlmfo.lock";

/// Between two tries of who is patient.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ExclusiveError {
    #[error("another nlmfo is at work ({who}); wait until it has ended")]
    Busy { who: String },
    #[error("the lock file {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
}

/// Held while this process changes things.
#[derive(Debug)]
pub struct Exclusive {
    _file: File,
}

impl Exclusive {
    /// Takes the lock, or says who has it.
    pub fn take() -> Result<Self, ExclusiveError> {
        let command: Vec<String> = std::env::args().collect();
        Self::take_at(Path::new(PATH), &command.join(" "))
    }

    /// [`Exclusive::take`], patient with who has it.
    pub async fn wait(patience: Duration) -> Result<Self, ExclusiveError> {
        let until = Instant::now() + patience;
        loop {
            match Self::take() {
                Err(ExclusiveError::Busy { .. }) if Instant::now() < until => sleep(LOOK).await,
                other => return other,
            }
        }
    }

    fn take_at(path: &Path, command: &str) -> Result<Self, ExclusiveError> {
        let failed = |source| ExclusiveError::File {
            path: path.to_owned(),
            source,
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut who = String::new();
                // Whoever has it may not have written yet.
                let _ = file.read_to_string(&mut who);
                let who = match who.trim() {
                    "" => "it has not said who it is".to_owned(),
                    who => who.to_owned(),
                };
                return Err(ExclusiveError::Busy { who });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        (file.set_len(0).and_then(|()| file.rewind()))
            .and_then(|()| write!(file, "pid {}: {command}", std::process::id()))
            .map_err(failed)?;
        Ok(Exclusive { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_is_told_who_is_the_first() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Exclusive::take_at(&path, "nlmfo failover --vip 10.77.0.1").unwrap();
        let error = Exclusive::take_at(&path, "nlmfo cleanup").unwrap_err();
        let pid = std::process::id().to_string();
        assert!(error.to_string().contains(&pid), "{error}");
        assert!(error.to_string().contains("--vip 10.77.0.1"), "{error}");
        drop(first);
        Exclusive::take_at(&path, "nlmfo cleanup").unwrap();
    }
}
