//! The BPF filesystem: what is pinned there stays in the kernel without a process.

use std::io;
use std::path::Path;

use rustix::mount::MountFlags;

pub const ROOT: &str = "/sys/fs/bpf";

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const MAGIC: i64 = 0xcafe_4a11;

/// Where nlmfo pins, below [`ROOT`].
const OURS: &str = "nlmfo";

#[derive(Debug, thiserror::Error)]
#[error(
    "a BPF filesystem cannot be mounted on {ROOT}: {source}; what must outlive this command is \
     pinned there (`mount -t bpf bpf {ROOT}`)"
)]
pub struct BpffsError {
    source: io::Error,
}

/// Whether it is mounted at its usual place.
pub fn is_mounted() -> bool {
    rustix::fs::statfs(ROOT).is_ok_and(|s| s.f_type == MAGIC)
}

/// Mounts it if it is not.
pub fn mount() -> Result<(), BpffsError> {
    if is_mounted() {
        return Ok(());
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    rustix::mount::mount("bpf", ROOT, "bpf", flags, None).map_err(|errno| BpffsError {
        source: errno.into(),
    })
}

/// The folder of everything that nlmfo pins; it need not be there.
pub fn folder() -> &'static Path {
    static FOLDER: std::sync::LazyLock<std::path::PathBuf> =
        std::sync::LazyLock::new(|| Path::new(ROOT).join(OURS));
    &FOLDER
}
