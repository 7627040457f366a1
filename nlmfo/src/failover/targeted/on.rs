//! The file or filesystem whose state is selected.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{major, minor};

use crate::kernel::mounts::mounts;
use crate::observe::table::FileInfo;

/// Why the kernel's file of a path is not known.
#[derive(Debug, thiserror::Error)]
pub enum OnError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(
        "its filesystem shows a device number ({0}:{1}) that is not in the kernel's lists, as btrfs does \
         for subvolumes: find its rows with `nlmfo locks`, and name them by --lock or \
         --client"
    )]
    OtherDevice(u32, u32),
}

/// The file or filesystem whose state is selected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    Anything,
    /// Major and minor number of the device.
    Filesystem(u32, u32),
    /// With the inode.
    File(u32, u32, u64),
}

impl On {
    /// The file that has this path.
    pub fn file(path: &Path) -> Result<On, OnError> {
        let found = std::fs::metadata(path)?;
        let device = (major(found.dev()), minor(found.dev()));
        // The list has the kernel's own device numbers. Without this check, nothing would be found on
        // the file, as if nothing were held.
        match mounts()?.iter().any(|mount| mount.device == device) {
            true => Ok(On::File(device.0, device.1, found.ino())),
            false => Err(OnError::OtherDevice(device.0, device.1)),
        }
    }

    /// The filesystem that holds the path.
    pub fn filesystem_of(path: &Path) -> Result<On, OnError> {
        On::file(path).map(On::filesystem)
    }

    /// The filesystem of the file.
    pub fn filesystem(self) -> On {
        match self {
            On::File(major, minor, _) => On::Filesystem(major, minor),
            other => other,
        }
    }

    /// Device and inode of the file.
    pub fn inode(self) -> Option<(u32, u32, u64)> {
        match self {
            On::File(major, minor, ino) => Some((major, minor, ino)),
            _ => None,
        }
    }

    pub fn has(self, file: &FileInfo) -> bool {
        self.has_inode((file.major, file.minor, file.ino))
    }

    /// Device and inode.
    pub fn has_inode(self, (major, minor, ino): (u32, u32, u64)) -> bool {
        match self {
            On::Anything => true,
            On::Filesystem(on_major, on_minor) => (major, minor) == (on_major, on_minor),
            On::File(on_major, on_minor, on_ino) => {
                (major, minor, ino) == (on_major, on_minor, on_ino)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_told_by_the_numbers_of_its_filesystem() {
        let file = On::file(Path::new("/dev/null")).unwrap();
        let (major, minor, ino) = file.inode().unwrap();
        assert!(file.has_inode((major, minor, ino)));
        assert!(!file.has_inode((major, minor, ino + 1)));
        assert!(file.filesystem().has_inode((major, minor, ino + 1)));
        assert!(!file.filesystem().has_inode((major + 1, minor, ino)));
        assert!(On::file(Path::new("/dev/null/nothing")).is_err());
    }
}
