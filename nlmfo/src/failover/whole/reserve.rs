//! Space for the records of a restart, on a filesystem that may become full: a file in the state
//! directory. It is removed when the server stops, so that the record can be written, and stays away
//! while the server starts, so that nfsdcld and statd can write.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use rustix::fs::{FallocateFlags, fallocate};
use tracing::{debug, warn};

use crate::files;
use crate::notify::state_dir::{self, Readers, StateDir};

const FILE: &str = "reserve";

/// Enough for the record of ten thousand locks.
const SIZE: u64 = 4 << 20;

/// What remains for the next stop if clients write while they reclaim.
const HALF: u64 = SIZE / 2;

fn path(state: &StateDir) -> PathBuf {
    state.path().join(FILE)
}

/// Makes the space available.
pub fn free(state: &StateDir) {
    let path = path(state);
    if let Err(error) = files::remove(&path) {
        warn!(path = %path.display(), %error, "the space that it reserves was not freed");
    }
}

/// Reserves half of it, before clients can write again: nfsdcld and statd may need the rest while
/// clients reclaim.
pub fn take_half(state: &StateDir) {
    take(state, HALF);
}

/// Reserves all of it.
pub fn take_all(state: &StateDir) {
    take(state, SIZE);
}

/// Never fails: only a stop on a full filesystem needs it.
fn take(state: &StateDir, size: u64) {
    let path = path(state);
    let taken = state_dir::create(state.path(), Readers::Statd)
        .and_then(|()| {
            let mut options = OpenOptions::new();
            options.write(true).create(true).mode(files::PRIVATE);
            options.custom_flags(libc::O_NOFOLLOW).open(&path)
        })
        .and_then(|file| extend(&file, size));
    match taken {
        Ok(()) => {}
        // NFS before 4.2, for example.
        Err(error) if error.kind() == io::ErrorKind::Unsupported => debug!(%error, "no reserve"),
        Err(error) => warn!(
            path = %path.display(), %error,
            "no space could be reserved: while the filesystem is full, a stop fails"
        ),
    }
}

fn extend(file: &File, size: u64) -> io::Result<()> {
    Ok(fallocate(file, FallocateFlags::empty(), 0, size)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_grows_and_goes() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        let size = || std::fs::metadata(path(&state)).map(|file| file.len()).ok();
        free(&state);
        for (take, expected) in [
            (take_half as fn(&StateDir), HALF),
            (take_all, SIZE),
            (take_half, SIZE),
        ] {
            take(&state);
            assert_eq!(size(), Some(expected));
        }
        free(&state);
        assert_eq!(size(), None);
    }
}
