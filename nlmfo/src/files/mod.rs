//! Files that a command reads or writes. The same rules apply to all of them:
//!
//! - What is read is a regular file, up to a limit: a device, a fifo or a directory is refused
//!   before it is opened.
//! - What is written is written whole: into a temporary file beside it, synced, and then given
//!   its name. A crash leaves the old file or the new one, and a temporary file, which goes with
//!   the next file that is written there, or with `cleanup`. A file has the mode that is named,
//!   whatever the umask.
//! - Only a file of ours is replaced: see [`Place`].
//!
//! Whatever lives in `/run` is in one directory of ours, see [`run`].

pub mod answers;
pub mod lock;
mod place;
pub mod run;
mod temporary;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub use place::Place;
pub use temporary::remove_abandoned;

use temporary::written_beside;

/// For root only.
pub const PRIVATE: u32 = 0o600;

/// Larger than any file of ours: enough for a record of some million locks.
pub const LIMIT: u64 = 1 << 30;

/// Why a file was not read, written or replaced. The message names the file; the source has the
/// cause.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{} is {kind}, not a regular file", path.display())]
    NotRegular { path: PathBuf, kind: &'static str },
    #[error("{} is larger than {limit} bytes", path.display())]
    TooLarge { path: PathBuf, limit: u64 },
    #[error(
        "{} exists and is not {wanted}: remove it, or name another file", path.display()
    )]
    NotOurs {
        path: PathBuf,
        wanted: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{} was changed by another process and is not replaced", path.display())]
    Changed { path: PathBuf },
    #[error("{action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

impl FileError {
    /// For `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| FileError::Io {
            action,
            path,
            source,
        }
    }

    pub fn is_absence(&self) -> bool {
        matches!(self, FileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// Reads a regular file of at most `limit` bytes.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    read_from(open(path)?, path, limit)
}

/// Reads at most `limit` bytes; `path` is what errors call the source.
pub fn read_from(source: impl Read, path: &Path, limit: u64) -> Result<Vec<u8>, FileError> {
    let mut content = Vec::new();
    let mut bounded = source.take(limit.saturating_add(1));
    bounded
        .read_to_end(&mut content)
        .map_err(FileError::io("reading", path))?;
    if content.len() as u64 > limit {
        return Err(FileError::TooLarge {
            path: path.to_owned(),
            limit,
        });
    }
    Ok(content)
}

/// Opens a regular file for reading.
pub fn open(path: &Path) -> Result<File, FileError> {
    // Checked before it is opened: opening a device may have effects, and a fifo blocks.
    let named = fs::metadata(path).map_err(FileError::io("reading", path))?;
    ensure_regular(path, &named)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(FileError::io("reading", path))?;
    // It may have been replaced by now.
    let opened = file.metadata().map_err(FileError::io("reading", path))?;
    ensure_regular(path, &opened)?;
    Ok(file)
}

/// Writes a file in one step and replaces an existing one. For files in our own directories; for
/// a file that the operator names, use [`Place`].
pub fn write_whole(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let temporary = written_beside(path, content, mode)?;
    temporary.persist(path).map_err(|error| error.error)?;
    sync_folder(folder_of(path))
}

/// Creates a file with this content, durably and in one step; `AlreadyExists` if it exists. If
/// several nodes try, exactly one succeeds, by a hard link. `prepare` gets the file before it has
/// its name.
pub fn create_new(
    path: &Path,
    content: &[u8],
    mode: u32,
    prepare: impl FnOnce(&File),
) -> io::Result<()> {
    let temporary = written_beside(path, content, mode)?;
    prepare(temporary.as_file());
    fs::hard_link(temporary.path(), path)?;
    drop(temporary);
    sync_folder(folder_of(path))
}

/// Removes a file durably: it does not come back after a crash. A missing file is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(folder_of(path)),
    }
}

/// Syncs a directory, after a file in it was created, renamed or removed.
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn ensure_regular(path: &Path, metadata: &fs::Metadata) -> Result<(), FileError> {
    use std::os::unix::fs::FileTypeExt;
    let kind = metadata.file_type();
    let kind = match kind {
        _ if kind.is_file() => return Ok(()),
        _ if kind.is_symlink() => "a symbolic link",
        _ if kind.is_dir() => "a directory",
        _ if kind.is_fifo() => "a pipe",
        _ if kind.is_socket() => "a socket",
        _ => "a device",
    };
    Err(FileError::NotRegular {
        path: path.to_owned(),
        kind,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_a_regular_file_is_read_and_only_so_far() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(matches!(read(&path, 4), Err(FileError::TooLarge { .. })));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert_eq!(read(&link, 5).unwrap(), b"12345");
        let fifo = folder.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
        for other in [&*fifo, folder.path(), Path::new("/dev/zero")] {
            let error = read(other, 5).unwrap_err();
            assert!(matches!(error, FileError::NotRegular { .. }), "{error}");
        }
        assert!(read(Path::new("/nonexistent"), 5).unwrap_err().is_absence());
    }

    #[test]
    fn a_file_is_written_whole_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "something longer").unwrap();
        write_whole(&path, b"new", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_the_first_creates_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one");
        create_new(&path, b"first", PRIVATE, |_| ()).unwrap();
        let again = create_new(&path, b"second", PRIVATE, |_| ()).unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
