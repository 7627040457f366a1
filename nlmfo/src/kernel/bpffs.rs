//! The BPF filesystem: what is pinned there stays in the kernel without a process.
//!
//! `ip netns exec` gives each command a mount namespace of its own with a new `/sys`, and
//! what is mounted below that is gone with the command. There, and wherever else no BPF
//! filesystem is mounted at its usual place, that of process 1 is used, through
//! `/proc/1/root`: in a container, process 1 is the container's.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::mount::MountFlags;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// The usual place.
const USUAL: &str = "/sys/fs/bpf";

/// The usual place of process 1, and its mount namespace.
const OF_INIT: &str = "/proc/1/root/sys/fs/bpf";
const INIT_NAMESPACE: &str = "/proc/1/ns/mnt";
const OUR_NAMESPACE: &str = "/proc/self/ns/mnt";

/// `BPF_FS_MAGIC` of include/uapi/linux/magic.h.
const MAGIC: i64 = 0xcafe_4a11;

/// Where nlmfo pins, below [`root`].
const OURS: &str = "nlmfo";

/// Why the BPF filesystem cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot mount a BPF filesystem, to pin what must outlive this command (`mount -t bpf bpf \
     {USUAL}`)"
)]
pub struct BpffsError {
    source: io::Error,
}

/// Which BPF filesystem is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// This mount namespace's.
    Here,
    /// That of process 1.
    Init,
}

impl Owner {
    fn choose(is_mounted_here: bool, is_here_init: bool) -> Self {
        match is_mounted_here || is_here_init {
            true => Owner::Here,
            false => Owner::Init,
        }
    }
}

static OWNER: LazyLock<Owner> = LazyLock::new(|| {
    let namespace = |path| std::fs::read_link(path).ok();
    // If process 1 cannot be inspected, its BPF filesystem cannot be used.
    let is_init = namespace(INIT_NAMESPACE).is_none_or(|init| {
        namespace(OUR_NAMESPACE).is_some_and(|ours| ours == init) || !Path::new(OF_INIT).is_dir()
    });
    Owner::choose(is_bpffs(Path::new(USUAL)), is_init)
});

/// Where the BPF filesystem is, or is to be mounted.
pub fn root() -> &'static Path {
    Path::new(match *OWNER {
        Owner::Here => USUAL,
        Owner::Init => OF_INIT,
    })
}

pub fn is_mounted() -> bool {
    is_bpffs(root())
}

fn is_bpffs(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|s| s.f_type == MAGIC)
}

/// Mounts it if it is not.
pub fn mount() -> Result<(), BpffsError> {
    if is_mounted() {
        return Ok(());
    }
    let mounted = match *OWNER {
        Owner::Here => mount_here(),
        Owner::Init => mount_in_init(),
    };
    mounted.map_err(|source| BpffsError { source })
}

fn mount_here() -> io::Result<()> {
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    Ok(rustix::mount::mount("bpf", USUAL, "bpf", flags, None)?)
}

/// Uses a thread of its own, which enters the mount namespace of process 1.
fn mount_in_init() -> io::Result<()> {
    let visit = thread::spawn(|| {
        let namespace = File::open(INIT_NAMESPACE)?;
        // A thread that shares its working directory with others cannot enter it.
        unshare(CloneFlags::CLONE_FS)?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?;
        mount_here()
    });
    visit
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("its thread panicked")))
}

/// The directory of everything that nlmfo pins; it need not exist.
pub fn folder() -> &'static Path {
    static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| root().join(OURS));
    &FOLDER
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_with_the_command_is_not_used() {
        for (is_mounted_here, is_here_init, expected) in [
            (true, true, Owner::Here),
            (false, true, Owner::Here),
            // A server with mounts of its own, as the probe's.
            (true, false, Owner::Here),
            // `ip netns exec`.
            (false, false, Owner::Init),
        ] {
            let chosen = Owner::choose(is_mounted_here, is_here_init);
            assert_eq!(chosen, expected, "{is_mounted_here} {is_here_init}");
        }
    }
}
