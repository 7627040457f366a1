//! The state directory: data that must survive a process, a boot or a node.
//!
//! ```text
//! DIR/vips/10.77.0.1/clients.0000000003   the client book of a VIP, see `book`
//! DIR/numbers/…                           NSM state numbers
//! ```
//!
//! It may be on storage that the nodes of a cluster share. Only root may read it, except that statd's
//! user may read the client books: the callout runs as that user.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{XattrFlags, fsetxattr};
use tracing::warn;

/// The default state directory.
pub(crate) const DEFAULT: &str = "/var/lib/nlmfo";

/// A state directory, which need not exist yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    root: PathBuf,
}

impl StateDir {
    /// The state directory at this path; nothing is read or created.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        StateDir { root: root.into() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.root
    }

    /// The directory of a VIP.
    pub(crate) fn vip(&self, vip: IpAddr) -> PathBuf {
        self.vips_folder().join(vip.to_canonical().to_string())
    }

    /// The VIPs that have a directory, in order.
    pub(crate) fn vips(&self) -> io::Result<Vec<IpAddr>> {
        let entries = match fs::read_dir(self.vips_folder()) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut vips = Vec::new();
        for entry in entries {
            if let Some(vip) = (entry?.file_name().to_str()).and_then(|name| name.parse().ok()) {
                vips.push(vip);
            }
        }
        vips.sort_unstable();
        Ok(vips)
    }

    /// The folder of the claimed state numbers.
    pub(crate) fn numbers(&self) -> PathBuf {
        self.root.join("numbers")
    }

    fn vips_folder(&self) -> PathBuf {
        self.root.join("vips")
    }

    /// Whether statd's user, which runs the callout, can list the client books. Tried on a thread with
    /// that user's filesystem credentials. Succeeds if there are no books yet.
    pub(crate) fn read_by_statd(&self) -> io::Result<()> {
        let folder = self.vips_folder();
        let Some(statd) = statd().filter(|_| folder.exists()) else {
            return Ok(());
        };
        let list = move || {
            // SAFETY: no memory is involved; of this thread alone, which ends with it.
            unsafe {
                libc::setfsgid(statd.group);
                libc::setfsuid(statd.user);
            }
            fs::read_dir(folder).map(drop)
        };
        (std::thread::spawn(list).join()).unwrap_or_else(|_| Err(io::Error::other("panic")))
    }
}

/// Who may read a directory, besides root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readers {
    Nobody,
    /// statd's user.
    Statd,
}

/// Creates a directory of the state directory, with all above it, which statd's user may list. Existing
/// directories are not changed.
pub(crate) fn create(folder: &Path, readers: Readers) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    if let Some(above) = folder
        .parent()
        .filter(|above| !above.as_os_str().is_empty())
    {
        create(above, Readers::Statd)?;
    }
    match DirBuilder::new().mode(0o700).create(folder) {
        // Another process was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            // The umask may have removed bits.
            fs::set_permissions(folder, Permissions::from_mode(0o700))?;
            if readers == Readers::Statd {
                let_statd_read(&File::open(folder)?);
            }
            Ok(())
        }
    }
}

/// Gives statd's user, and no other user, read access to a file or directory of root. If that
/// fails, the callout reports that it cannot read.
pub(crate) fn let_statd_read(file: &File) {
    let let_read = |statd: Statd| {
        let is_folder = file.metadata()?.is_dir();
        let acl = acl(statd.user, is_folder);
        match fsetxattr(file, "system.posix_acl_access", &acl, XattrFlags::empty()) {
            Ok(()) => Ok(()),
            // A filesystem without access control lists.
            Err(_) => {
                fchown(file, None, Some(statd.group))?;
                let mode = if is_folder { 0o750 } else { 0o640 };
                file.set_permissions(Permissions::from_mode(mode))
            }
        }
    };
    if let Some(Err(error)) = statd().map(let_read) {
        warn!(%error, "cannot give statd's user access to the client book");
    }
}

/// The user that statd runs as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Statd {
    user: u32,
    group: u32,
}

/// Where statd keeps its state, on Fedora and its relatives and elsewhere.
const STATD: [&str; 2] = ["/var/lib/nfs/statd", "/var/lib/nfs"];

/// The owner of its state directory: statd runs as that user (rpc.statd(8)). None if that is root, or
/// statd is not installed.
fn statd() -> Option<Statd> {
    let folder = (STATD.iter().map(Path::new)).find(|folder| folder.join("sm").is_dir())?;
    let owners = [folder.to_owned(), folder.join("sm")].into_iter();
    let owner = owners.filter_map(|folder| fs::metadata(folder).ok());
    let owner = owner.into_iter().find(|owner| owner.uid() != 0)?;
    Some(Statd {
        user: owner.uid(),
        group: owner.gid(),
    })
}

/// An access control list: all for the owner, reading for one user. Its form is that of
/// `include/uapi/linux/posix_acl_xattr.h`, in little-endian order.
fn acl(user: u32, is_folder: bool) -> Vec<u8> {
    const NO_ID: u32 = u32::MAX;
    let (owner, reader) = if is_folder { (7, 5) } else { (6, 4) };
    let entries: [(u16, u16, u32); 5] = [
        (0x01, owner, NO_ID),  // the owner
        (0x02, reader, user),  // this user
        (0x04, 0, NO_ID),      // the group
        (0x10, reader, NO_ID), // the most that users and groups get
        (0x20, 0, NO_ID),      // others
    ];
    let mut acl = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        acl.extend(tag.to_le_bytes());
        acl.extend(permissions.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn its_vips_are_those_with_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().join("state"));
        assert!(state.vips().unwrap().is_empty());
        let vips: [IpAddr; 2] = ["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()];
        for vip in vips {
            create(&state.vip(vip), Readers::Statd).unwrap();
        }
        fs::create_dir(state.vips_folder().join("lost+found")).unwrap();
        assert_eq!(state.vips().unwrap(), vips);
    }

    #[test]
    fn its_folders_are_private_whatever_else_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let numbers = folder.path().join("state/numbers");
        create(&numbers, Readers::Nobody).unwrap();
        create(&numbers, Readers::Nobody).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!(mode(&numbers), 0o700);
        assert_eq!(mode(&folder.path().join("state")) & 0o007, 0);
        fs::write(folder.path().join("file"), "").unwrap();
        create(&folder.path().join("file"), Readers::Nobody).unwrap_err();
    }

    #[test]
    fn one_user_may_read_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("book");
        fs::write(&path, "").unwrap();
        let file = File::open(&path).unwrap();
        match fsetxattr(
            &file,
            "system.posix_acl_access",
            &acl(4711, false),
            XattrFlags::empty(),
        ) {
            // The mode's group is the most that the user gets.
            Ok(()) => assert_eq!(file.metadata().unwrap().mode() & 0o777, 0o640),
            Err(errno) => assert_eq!(errno, rustix::io::Errno::OPNOTSUPP),
        }
    }
}
