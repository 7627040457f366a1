//! The mounts of a server: a mount namespace of its own, which keeps no other filesystem of the node
//! busy, and in which alone its filesystems are mounted.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::description::{Description, Filesystem};
use super::program::{run, wait_for};
use super::{STEP, ServerError};
use crate::kernel::mounts::{self, Mount};
use crate::kernel::nfsd;
use crate::kernel::processes::{self, Process};

/// Paths that the programs of the distribution, and those of `exec`, read and write.
const NEEDED: [&str; 11] = [
    "/bin",
    "/sbin",
    "/lib",
    "/lib64",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib",
    "/etc",
    "/root",
    "/tmp",
    "/var/lib/nfs",
];

const RUN: &str = "/run";
/// nfsd's and nfsdcld's pipe.
pub const PIPES: &str = "/run/rpc_pipefs";
/// Below the server's own `/run`: its exports, and the output of daemons.
pub const OWN: &str = "/run/nlmfo-server";
const STATD: &str = "/var/lib/nfs";
const EXPORTS: &str = "/etc/exports";

/// Files that only root reads, or everyone.
const FOLDERS: [(&str, u32); 9] = [
    ("/run/lock", 0o755),
    ("/run/rpcbind", 0o755),
    (PIPES, 0o755),
    (OWN, 0o755),
    ("/run/nlmfo-server/empty.d", 0o755),
    ("/var/lib/nfs/sm", 0o700),
    ("/var/lib/nfs/sm.bak", 0o700),
    ("/var/lib/nfs/v4recovery", 0o755),
    ("/var/lib/nfs/rpc_pipefs", 0o755),
];

/// Whether a mount of the node stays in the server's namespace: of the kernel's filesystems
/// those that are not of one network namespace, of others those that hold a needed path.
fn stays(mount: &Mount, needed: &[PathBuf]) -> bool {
    match &*mount.filesystem {
        "nfsd" | "rpc_pipefs" => false,
        _ => {
            mounts::is_kernels(&mount.mount_point)
                || needed
                    .iter()
                    .any(|path| path.starts_with(&mount.mount_point))
        }
    }
}

fn needed(description: &Description) -> Vec<PathBuf> {
    let mut needed: Vec<PathBuf> = NEEDED.iter().map(PathBuf::from).collect();
    needed.extend(std::env::current_exe());
    // The mount points of its filesystems, and the exported paths of others.
    let own = description.filesystems.iter();
    let own: Vec<&Path> = own.map(|filesystem| &*filesystem.path).collect();
    needed.extend(
        own.iter()
            .filter_map(|path| Some(path.parent()?.to_owned())),
    );
    let served = description.exported().chain([&*description.state]);
    let elsewhere = served.filter(|path| !own.iter().any(|own| path.starts_with(own)));
    needed.extend(elsewhere.map(Path::to_owned));
    needed
}

/// Runs in a new mount namespace, before any other process enters it: unmounts what the server does not
/// need. This includes nfsd's files of the node's own server, which could be stopped through them.
pub fn leave_others(description: &Description) -> Result<(), ServerError> {
    let needed = needed(description);
    let all = mounts::mounts().map_err(ServerError::io("read the mounts of", Path::new("/")))?;
    for mount in all.iter().rev().filter(|mount| !stays(mount, &needed)) {
        let path = &mount.mount_point;
        match umount2(path, MntFlags::MNT_DETACH) {
            // It was below a mount that is gone.
            Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(ServerError::io("unmount", path)(error.into())),
        }
    }
    Ok(())
}

/// Mounts what the server needs.
pub fn prepare(description: &Description) -> Result<(), ServerError> {
    let statd = statd_owner();
    for folder in [RUN, STATD] {
        let folder = Path::new(folder);
        fs::create_dir_all(folder).map_err(ServerError::io("create", folder))?;
        tmpfs(folder)?;
    }
    for (folder, mode) in FOLDERS {
        let folder = Path::new(folder);
        let made = DirBuilder::new().mode(mode).create(folder);
        made.map_err(ServerError::io("create", folder))?;
    }
    for folder in ["/var/lib/nfs", "/var/lib/nfs/sm", "/var/lib/nfs/sm.bak"] {
        give(Path::new(folder), statd)?;
    }
    for table in ["/var/lib/nfs/etab", "/var/lib/nfs/rmtab"] {
        write(Path::new(table), "")?;
    }
    nfsd::mount().map_err(ServerError::io(
        "mount nfsd's files on",
        Path::new(nfsd::ROOT),
    ))?;
    mount_kind("rpc_pipefs", Path::new(PIPES))?;
    configure(description)?;
    for filesystem in &description.filesystems {
        mount_own(filesystem)?;
    }
    keep_state(description, statd)
}

fn tmpfs(folder: &Path) -> Result<(), ServerError> {
    let mounted = mount(
        Some("tmpfs"),
        folder,
        Some("tmpfs"),
        MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        Some("mode=755"),
    );
    mounted.map_err(|error| ServerError::io("mount a tmpfs on", folder)(error.into()))
}

fn mount_kind(kind: &str, folder: &Path) -> Result<(), ServerError> {
    let nothing = None::<&str>;
    let mounted = mount(Some(kind), folder, Some(kind), MsFlags::empty(), nothing);
    mounted.map_err(|error| ServerError::io("mount rpc_pipefs on", folder)(error.into()))
}

fn bind(source: &Path, target: &Path) -> Result<(), ServerError> {
    let nothing = None::<&str>;
    let mounted = mount(Some(source), target, nothing, MsFlags::MS_BIND, nothing);
    mounted.map_err(|error| ServerError::io("mount the server's own", target)(error.into()))
}

/// The server's exports in place of the node's; its configuration of daemons hidden.
fn configure(description: &Description) -> Result<(), ServerError> {
    let own = Path::new(OWN);
    let (exports, empty) = (own.join("exports"), own.join("empty"));
    write(&exports, &(description.exports.join("\n") + "\n"))?;
    write(&empty, "")?;
    bind(&exports, Path::new(EXPORTS))?;
    for file in ["/etc/nfs.conf", "/etc/nfs.conf.local"] {
        if Path::new(file).is_file() {
            bind(&empty, Path::new(file))?;
        }
    }
    for folder in ["/etc/exports.d", "/etc/nfs.conf.d"] {
        if Path::new(folder).is_dir() {
            bind(&own.join("empty.d"), Path::new(folder))?;
        }
    }
    Ok(())
}

fn mount_own(filesystem: &Filesystem) -> Result<(), ServerError> {
    let Filesystem {
        device,
        path,
        kind,
        options,
    } = filesystem;
    fs::create_dir_all(path).map_err(ServerError::io("create", path))?;
    let mut arguments = vec!["-t".into(), kind.into()];
    if !options.is_empty() {
        arguments.extend(["-o".into(), options.into()]);
    }
    arguments.extend([device.clone().into_os_string(), path.clone().into()]);
    Ok(run("mount", &arguments)?)
}

/// The directories for the records of statd, nfsdcld and ours.
fn keep_state(description: &Description, statd: (u32, u32)) -> Result<(), ServerError> {
    let state = &description.state;
    let folders = ["", "cld", "nlmfo", "statd", "statd/sm", "statd/sm.bak"];
    for folder in folders.map(|name| state.join(name)) {
        match DirBuilder::new().mode(0o700).create(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => made.map_err(ServerError::io("create", &folder))?,
        }
    }
    // statd's user passes.
    let mode = fs::Permissions::from_mode(0o711);
    fs::set_permissions(state, mode).map_err(ServerError::io("set the mode of", state))?;
    let number = state.join("statd/state");
    if !number.exists() {
        write(&number, "")?;
    }
    for name in ["statd", "statd/sm", "statd/sm.bak", "statd/state"] {
        give(&state.join(name), statd)?;
    }
    Ok(())
}

/// User and group of statd, which drops root's privileges and runs as the owner of its directory.
fn statd_owner() -> (u32, u32) {
    let folders = [
        "/var/lib/nfs/statd/sm",
        "/var/lib/nfs/sm",
        "/var/lib/nfs/statd",
    ];
    let mut found = folders
        .iter()
        .filter_map(|folder| fs::metadata(folder).ok());
    found
        .next()
        .map_or((0, 0), |found| (found.uid(), found.gid()))
}

fn give(path: &Path, (user, group): (u32, u32)) -> Result<(), ServerError> {
    chown(path, Some(user), Some(group)).map_err(ServerError::io("change the owner of", path))
}

fn write(path: &Path, text: &str) -> Result<(), ServerError> {
    fs::write(path, text).map_err(ServerError::io("write", path))
}

/// Unmounts the server's filesystems, in its mount namespace. nfsd keeps files open for a moment
/// after its last use of them.
pub fn unmount_own(description: &Description) -> Result<(), ServerError> {
    for filesystem in description.filesystems.iter().rev() {
        let path = &filesystem.path;
        let mut last = None;
        let is_gone = wait_for(STEP, || {
            let is_mounted = |all: Vec<Mount>| all.iter().any(|one| one.mount_point == *path);
            if !is_mounted(mounts::mounts()?) {
                return Ok(true);
            }
            last = umount2(path, MntFlags::empty()).err();
            Ok(false)
        });
        match is_gone.map_err(ServerError::io("read the mounts of", path))? {
            true => {}
            false => {
                let cause = last.map_or_else(|| io::Error::other("it stays"), io::Error::from);
                return Err(ServerError::io("unmount", path)(cause));
            }
        }
    }
    Ok(())
}

/// Ensures that nothing on this node uses the device, by opening it exclusively (`O_EXCL`).
///
/// # Errors
/// If it is used, with the processes in whose mount namespace it is mounted.
pub fn ensure_free(device: &Path) -> Result<(), ServerError> {
    let opened = || {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_EXCL).open(device)
    };
    // A filesystem that is being unmounted is written out before its device is released.
    let is_busy = |error: &io::Error| error.kind() == io::ErrorKind::ResourceBusy;
    let mut last = None;
    let is_free = wait_for(STEP, || match opened() {
        Ok(file) => {
            drop::<File>(file);
            Ok(true)
        }
        Err(error) if is_busy(&error) && processes_with(device).is_empty() => {
            last = Some(error);
            Ok(false)
        }
        Err(error) => Err(error),
    });
    let cause = match is_free {
        Ok(true) => return Ok(()),
        Ok(false) => last.unwrap_or_else(|| io::Error::other("it is in use")),
        Err(error) => error,
    };
    let holders = processes_with(device);
    if holders.is_empty() {
        return Err(ServerError::io("open exclusively", device)(cause));
    }
    let named = holders
        .iter()
        .map(|one| format!("{} ({})", one.id, one.name));
    let named: Vec<String> = named.collect();
    Err(ServerError::Refused(format!(
        "{} is mounted in the mount namespace of process {}",
        device.display(),
        named.join(", ")
    )))
}

/// [`ensure_free`], or the device cannot be opened here at all: it is missing, or it belongs to a DRBD
/// resource that is secondary here. Then nothing can have mounted it.
///
/// # Errors
/// If it is used.
pub fn ensure_free_or_missing(device: &Path) -> Result<(), ServerError> {
    match File::open(device) {
        Err(error) if cannot_be_used(&error) => Ok(()),
        _ => ensure_free(device),
    }
}

/// Whether an open of a device failed because there is nothing to open, or not on this node.
fn cannot_be_used(error: &io::Error) -> bool {
    let missing = [
        libc::ENOENT,
        libc::ENODEV,
        libc::ENXIO,
        libc::EROFS,
        libc::ENOMEDIUM,
        libc::EMEDIUMTYPE,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| missing.contains(&code))
}

/// One process of each mount namespace where the device's filesystem is mounted.
pub fn processes_with(device: &Path) -> Vec<Process> {
    let number = fs::metadata(device).map(|found| found.rdev());
    let number = number.map(|rdev| (rustix::fs::major(rdev), rustix::fs::minor(rdev)));
    let found = number.and_then(processes::with_mount_of);
    found.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_needed_mounts_stay() {
        let mount = |mount_point: &str, filesystem: &str| Mount {
            device: (0, 1),
            root: "/".into(),
            mount_point: mount_point.into(),
            filesystem: filesystem.into(),
        };
        let needed = ["/usr/bin", "/srv", "/home/admin/nlmfo"].map(PathBuf::from);
        for (point, kind, expected) in [
            ("/", "ext4", true),
            ("/usr", "ext4", true),
            ("/srv", "ext4", true),
            ("/srv/data", "ext4", false),
            ("/home", "nfs", true),
            ("/run", "tmpfs", false),
            ("/run/user/0", "tmpfs", false),
            ("/sys/fs/cgroup", "cgroup2", true),
            ("/dev/shm", "tmpfs", true),
            ("/proc/fs/nfsd", "nfsd", false),
            ("/var/lib/nfs/rpc_pipefs", "rpc_pipefs", false),
        ] {
            assert_eq!(stays(&mount(point, kind), &needed), expected, "{point}");
        }
    }
}
