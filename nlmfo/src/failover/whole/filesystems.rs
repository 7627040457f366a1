//! The filesystems of the exports and of the files in a record. A file has the path of one mount of its
//! filesystem, and may be exported through another mount: exports are often bind mounts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};

use crate::failover::record::Record;
use crate::kernel::mounts::{Mount, mounts};

/// (major, minor).
type Device = (u32, u32);

#[derive(Clone, Debug, Default)]
pub struct Filesystems {
    exported: BTreeSet<Device>,
    /// The filesystem of each file of a record that still has the recorded path.
    files: BTreeMap<String, Device>,
}

impl Filesystems {
    /// # Errors
    /// If the mounts cannot be read.
    pub fn read(exports: &BTreeSet<PathBuf>, record: Option<&Record>) -> io::Result<Self> {
        let real = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        let exports: Vec<PathBuf> = exports.iter().map(real).collect();
        let paths: BTreeSet<&str> = record.map_or_else(BTreeSet::new, |record| {
            let nfs3 = record.locks.iter().map(|lock| &*lock.file);
            let nfs3 = nfs3.chain(record.shares.iter().map(|share| &*share.file));
            let nfs4 = record.nfs4.iter().filter_map(|state| state.file.as_ref());
            let files = nfs3.chain(nfs4);
            files.filter_map(|file| file.path.as_deref()).collect()
        });
        let there = |path: &&str| Path::new(path).symlink_metadata().is_ok();
        let paths = paths.into_iter().filter(there);
        Ok(Self::of(&mounts()?, &exports, paths))
    }

    pub fn of<'a>(
        mounts: &[Mount],
        exports: &[PathBuf],
        files: impl Iterator<Item = &'a str>,
    ) -> Self {
        // A client may cross into what is mounted below an export (crossmnt).
        let below = |export: &PathBuf| {
            let below = |mount: &&Mount| mount.mount_point.starts_with(export);
            let below: Vec<Device> = mounts.iter().filter(below).map(|m| m.device).collect();
            below.into_iter().chain(device(mounts, export))
        };
        Filesystems {
            exported: exports.iter().flat_map(below).collect(),
            files: files
                .filter_map(|file| Some((file.to_owned(), device(mounts, Path::new(file))?)))
                .collect(),
        }
    }

    /// Whether it is certain that nothing is exported of the file's filesystem.
    pub fn excludes(&self, path: &str) -> bool {
        let device = self.files.get(path);
        device.is_some_and(|device| !self.exported.contains(device))
    }
}

/// The filesystem at a path.
fn device(mounts: &[Mount], path: &Path) -> Option<Device> {
    let above = mounts.iter().filter(|m| path.starts_with(&m.mount_point));
    // Of several mounts at one place, the last covers the others.
    let nearest = above.max_by_key(|mount| mount.mount_point.components().count());
    nearest.map(|mount| mount.device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(minor: u32, root: &str, mount_point: &str) -> Mount {
        Mount {
            device: (8, minor),
            root: root.into(),
            mount_point: mount_point.into(),
            filesystem: "ext4".to_owned(),
        }
    }

    #[test]
    fn a_file_is_excluded_only_if_its_filesystem_is_not_exported_at_all() {
        let mounts = [
            mount(1, "/", "/"),
            mount(2, "/", "/data"),
            mount(3, "/", "/data/inner"),
            mount(4, "/", "/other"),
            mount(2, "/sub", "/export/sub"),
            mount(3, "/", "/export/sub/inner"),
        ];
        let files = ["/data/sub/f", "/data/inner/f", "/other/f", "/f"];
        let of = |exports: &[&str]| {
            let exports: Vec<PathBuf> = exports.iter().map(PathBuf::from).collect();
            Filesystems::of(&mounts, &exports, files.into_iter())
        };
        let excluded = |found: &Filesystems| files.map(|file| found.excludes(file));
        // A bind mount, and what is mounted below it.
        let bound = of(&["/export/sub"]);
        assert_eq!(excluded(&bound), [false, false, true, true]);
        assert_eq!(excluded(&of(&["/other"])), [true, true, false, true]);
        assert_eq!(excluded(&of(&[])), [true; 4]);
        // It is not known where this one is.
        assert!(!bound.excludes("/gone"));
    }
}
