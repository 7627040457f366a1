//! The root of the cgroup2 hierarchy, to which every socket of the node belongs.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

use super::mounts;

const KIND: &str = "cgroup2";

/// Inode of the hierarchy's root (fs/kernfs/dir.c numbers from 1). A cgroup namespace of a
/// container shows another one as its root.
const ROOT: u64 = 1;

/// Why the control group cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cannot open the root cgroup")]
    Open(#[source] io::Error),
    #[error(
        "only a part of the cgroup2 hierarchy is visible, as in a container: run nlmfo in the \
         initial cgroup namespace (`nsenter --target 1 --cgroup --mount`)"
    )]
    Namespace,
}

/// The root: of this mount namespace, else of the first process's, as `ip netns exec` hides
/// what is mounted below /sys. It is mounted, for this process alone, only where no
/// hierarchy is: a mount without options would reset those of the others.
pub fn root() -> Result<File, CgroupError> {
    let mut is_mounted = false;
    for (list, seen_from) in [(mounts::OURS, "/"), (mounts::OF_INIT, "/proc/1/root")] {
        // Some containers do not allow this read.
        for mount in mounts::listed_in(list).unwrap_or_default() {
            if mount.filesystem != KIND {
                continue;
            }
            is_mounted = true;
            let inside = mount.mount_point.strip_prefix("/");
            let path = Path::new(seen_from).join(inside.unwrap_or(&mount.mount_point));
            // The mount may be hidden behind another one.
            if let Ok(folder) = File::open(path)
                && folder.metadata().is_ok_and(|found| found.ino() == ROOT)
            {
                return Ok(folder);
            }
        }
    }
    if is_mounted {
        return Err(CgroupError::Namespace);
    }
    let folder = File::from(mounted().map_err(|errno| CgroupError::Open(errno.into()))?);
    match folder.metadata().map_err(CgroupError::Open)?.ino() {
        ROOT => Ok(folder),
        _ => Err(CgroupError::Namespace),
    }
}

/// Mounts it without a place in the file tree.
fn mounted() -> rustix::io::Result<OwnedFd> {
    let filesystem = rustix::mount::fsopen(KIND, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_create(&filesystem)?;
    let flags = FsMountFlags::FSMOUNT_CLOEXEC;
    let mount = rustix::mount::fsmount(&filesystem, flags, MountAttrFlags::empty())?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(&mount, ".", flags, Mode::empty())
}
