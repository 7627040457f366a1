//! From an NFS file handle to the path of the file on this node.
//!
//! lockd knows a file by its handle. The handle opens the file on a mount of its
//! filesystem, and the kernel names what was opened; the name counts only if it
//! leads back to the same file. A file that was reached by its handle alone, as
//! after a takeover, has no name in the kernel's cache: such files are looked for
//! in the exported directories of their filesystem, within a limit.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{CString, c_int, c_uint};
use std::fs::{self, File, Metadata};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{major, minor};

use super::exports::exported;
use super::handle::{FileId, HandleError};
use super::mounts::{Mount, mounts};

/// `MAX_HANDLE_SZ` of include/linux/exportfs.h.
const MAX_HANDLE: usize = 128;

/// A locked file, by its file handle and its inode.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockedFile {
    /// The used bytes of `nlm_file.f_handle`.
    pub handle: Vec<u8>,
    /// `super_block.s_dev` as the kernel keeps it: 12 bits of major, 20 of minor.
    pub device: u32,
    pub inode: u64,
}

/// Why a file has no path here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPath {
    #[error(transparent)]
    Handle(#[from] HandleError),
    #[error("its filesystem, device {major}:{minor}, is not mounted in this mount namespace")]
    NotMounted { major: u32, minor: u32 },
    #[error("its filesystem cannot open it by handle: {0}")]
    NotOpened(String),
    #[error("its handle now belongs to another inode, {0}")]
    OtherInode(u64),
    #[error("it was removed while open")]
    Removed,
    #[error(
        "the kernel does not know its name, and it was not found in {searched} directory entries"
    )]
    NotFound { searched: usize },
}

/// (major, minor).
type Device = (u32, u32);

/// Finds paths, and keeps the mounts open that it used.
#[derive(Debug)]
pub struct PathFinder {
    by_device: BTreeMap<Device, Vec<(Mount, Option<OwnedFd>)>>,
    exported: BTreeSet<PathBuf>,
    /// Directory entries that a search may still read.
    search_limit: usize,
}

impl PathFinder {
    /// `search_limit` is the number of directory entries that may be read in all to find files that the
    /// kernel cannot name; 0 means none. A cold disk provides some 50,000 in a second.
    pub fn new(search_limit: usize) -> io::Result<Self> {
        Ok(Self::with(mounts()?, exported()?, search_limit))
    }

    fn with(mounts: Vec<Mount>, exported: BTreeSet<PathBuf>, search_limit: usize) -> Self {
        let mut by_device: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for mount in mounts {
            by_device
                .entry(mount.device)
                .or_default()
                .push((mount, None));
        }
        // A mount of only a part of a filesystem does not have a path for every file.
        for mounts in by_device.values_mut() {
            mounts.sort_by_key(|(mount, _)| mount.root.components().count());
        }
        PathFinder {
            by_device,
            exported,
            search_limit,
        }
    }

    /// One answer for each file, in their order.
    pub fn find_all(&mut self, files: &[LockedFile]) -> Vec<Result<PathBuf, NoPath>> {
        let mut found: Vec<_> = files.iter().map(|file| self.by_handle(file)).collect();
        let mut nameless: BTreeMap<Device, Vec<usize>> = BTreeMap::new();
        for (index, answer) in found.iter().enumerate() {
            if matches!(answer, Err(NoPath::NotFound { .. })) {
                nameless
                    .entry(device(files[index].device))
                    .or_default()
                    .push(index);
            }
        }
        for (device, indices) in nameless {
            let wanted: Vec<&LockedFile> = indices.iter().map(|&index| &files[index]).collect();
            for (index, answer) in indices.iter().zip(self.search(device, &wanted)) {
                found[*index] = answer;
            }
        }
        found
    }

    /// The path of a file of which only the handle is known: on whichever exported
    /// filesystem opens it.
    pub fn find_by_handle(&mut self, handle: &[u8]) -> Result<PathBuf, NoPath> {
        let id = FileId::parse(handle)?;
        let devices: BTreeSet<Device> = (self.exported.iter())
            .filter_map(|folder| fs::metadata(folder).ok())
            .map(|metadata| (major(metadata.dev()), minor(metadata.dev())))
            .collect();
        let mut last = NoPath::NotFound { searched: 0 };
        for device in devices {
            match self.by_id(device, &id, None) {
                Err(why) => last = why,
                found => return found,
            }
        }
        Err(last)
    }

    /// [`NoPath::NotFound`] with nothing searched means: the file is there, and the
    /// kernel does not know its name.
    fn by_handle(&mut self, file: &LockedFile) -> Result<PathBuf, NoPath> {
        match FileId::parse(&file.handle) {
            Err(HandleError::Root) => self.exported_root(file),
            id => self.by_id(device(file.device), &id?, Some(file.inode)),
        }
    }

    /// The exported directory that this is.
    fn exported_root(&self, file: &LockedFile) -> Result<PathBuf, NoPath> {
        let is_it = |m: Metadata| {
            (major(m.dev()), minor(m.dev())) == device(file.device) && m.ino() == file.inode
        };
        let mut exported = self.exported.iter();
        let found = exported.find(|folder| fs::metadata(folder).is_ok_and(is_it));
        Ok(found.ok_or(HandleError::Root)?.clone())
    }

    /// `inode` is checked if it is known.
    fn by_id(
        &mut self,
        (major, minor): Device,
        id: &FileId,
        inode: Option<u64>,
    ) -> Result<PathBuf, NoPath> {
        let mounts = self
            .by_device
            .get_mut(&(major, minor))
            .map_or(&mut [][..], Vec::as_mut_slice);
        let mut last = NoPath::NotMounted { major, minor };
        for (mount, kept) in mounts {
            let opened = match kept {
                Some(fd) => Ok(&*fd),
                // Without O_NONBLOCK, a mount over a fifo would block.
                None => fs::OpenOptions::new()
                    .read(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open(&mount.mount_point)
                    .map(|file| &*kept.insert(file.into())),
            };
            match opened.and_then(|fd| open_by_handle(fd, id)) {
                Err(error) => last = NoPath::NotOpened(error.to_string()),
                Ok(opened) => match name_of(&opened, inode) {
                    Ok(path) => return Ok(path),
                    Err(why) => last = why,
                },
            }
        }
        Err(last)
    }

    /// One walk for all files of a filesystem whose names the kernel does not know.
    fn search(&mut self, device: Device, wanted: &[&LockedFile]) -> Vec<Result<PathBuf, NoPath>> {
        let mut nameless: BTreeMap<u64, Vec<(usize, FileId)>> = BTreeMap::new();
        for (index, file) in wanted.iter().enumerate() {
            if let Ok(id) = FileId::parse(&file.handle) {
                nameless.entry(file.inode).or_default().push((index, id));
            }
        }
        let mut found = vec![None; wanted.len()];
        let before = self.search_limit;
        for root in self.exported_from(device) {
            walk(&root, &mut self.search_limit, |inode, path| {
                if let Some(candidates) = nameless.get_mut(&inode)
                    && let Ok(there) = file_id(path)
                {
                    for (index, _) in candidates.extract_if(.., |(_, id)| is_same(id, &there)) {
                        found[index] = Some(path.to_owned());
                    }
                    if candidates.is_empty() {
                        nameless.remove(&inode);
                    }
                }
                match nameless.is_empty() {
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            });
        }
        let searched = before - self.search_limit;
        found
            .into_iter()
            .map(|path| path.ok_or(NoPath::NotFound { searched }))
            .collect()
    }

    /// The exported directories of a filesystem, but none that is inside of another.
    fn exported_from(&self, device: Device) -> Vec<PathBuf> {
        let mut roots: Vec<PathBuf> = Vec::new();
        for folder in &self.exported {
            let is_on = |m: Metadata| (major(m.dev()), minor(m.dev())) == device;
            // In the order of paths an outer directory comes before what is inside.
            if fs::metadata(folder).is_ok_and(is_on) && !roots.iter().any(|r| folder.starts_with(r))
            {
                roots.push(folder.clone());
            }
        }
        roots
    }
}

/// (major, minor) of a `dev_t` as the kernel keeps it.
pub fn device(kernel: u32) -> Device {
    (kernel >> 20, kernel & 0xf_ffff)
}

/// Shows `visit` the directory entries below `root`, on its filesystem only, until it says stop or
/// `limit` is used up. Breadth first, so that a limit omits deep entries rather than late ones.
fn walk(root: &Path, limit: &mut usize, mut visit: impl FnMut(u64, &Path) -> ControlFlow<()>) {
    let Ok(device) = fs::metadata(root).map(|metadata| metadata.dev()) else {
        return;
    };
    let mut folders = VecDeque::from([root.to_owned()]);
    while let Some(folder) = folders.pop_front() {
        // Directories come and go during the walk, and some cannot be read: the file
        // may be elsewhere.
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            if *limit == 0 {
                return;
            }
            *limit -= 1;
            let path = entry.path();
            if visit(entry.ino(), &path).is_break() {
                return;
            }
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_folder && fs::symlink_metadata(&path).is_ok_and(|m| m.dev() == device) {
                folders.push_back(path);
            }
        }
    }
}

/// The kernel's name of an opened file, if that name leads to this very file, and if
/// it is the inode that it should be.
fn name_of(opened: &File, inode: Option<u64>) -> Result<PathBuf, NoPath> {
    let io = |error: io::Error| NoPath::NotOpened(error.to_string());
    let metadata = opened.metadata().map_err(io)?;
    if inode.is_some_and(|inode| metadata.ino() != inode) {
        return Err(NoPath::OtherInode(metadata.ino()));
    }
    if metadata.nlink() == 0 {
        return Err(NoPath::Removed);
    }
    let name = fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd())).map_err(io)?;
    match fs::symlink_metadata(&name) {
        Ok(found) if (found.dev(), found.ino()) == (metadata.dev(), metadata.ino()) => Ok(name),
        _ => Err(NoPath::NotFound { searched: 0 }),
    }
}

/// `struct file_handle` of `open_by_handle_at(2)` with room for its bytes.
#[repr(C)]
struct Handle {
    handle_bytes: c_uint,
    handle_type: c_int,
    f_handle: [u8; MAX_HANDLE],
}

fn open_by_handle(mount: &OwnedFd, id: &FileId) -> io::Result<File> {
    let mut handle = Handle {
        handle_bytes: id.bytes.len() as c_uint,
        handle_type: c_int::from(id.kind),
        f_handle: [0; MAX_HANDLE],
    };
    let Some(place) = handle.f_handle.get_mut(..id.bytes.len()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    place.copy_from_slice(&id.bytes);
    let handle: *mut Handle = &raw mut handle;
    // SAFETY: `Handle` begins as `libc::file_handle` does, and holds as many bytes
    // as `handle_bytes` says; it lives until the call returns.
    let fd = unsafe {
        libc::open_by_handle_at(
            mount.as_raw_fd(),
            handle.cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) }.into())
}

/// Whether the id in an NFS handle is that of a file. nfsd may have put the
/// parent's id behind the file's (exports with `subtree_check`), hence the prefix.
fn is_same(in_handle: &FileId, of_file: &FileId) -> bool {
    !of_file.bytes.is_empty() && in_handle.bytes.starts_with(&of_file.bytes)
}

/// The id of the file at `path`, by `name_to_handle_at(2)`.
fn file_id(path: &Path) -> io::Result<FileId> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut handle = Handle {
        handle_bytes: MAX_HANDLE as c_uint,
        handle_type: 0,
        f_handle: [0; MAX_HANDLE],
    };
    let mut mount_id: c_int = 0;
    let place: *mut Handle = &raw mut handle;
    // SAFETY: the path is a C string; `Handle` begins as `libc::file_handle` does,
    // and has room for as many bytes as `handle_bytes` says; all live until the call
    // returns.
    let result = unsafe {
        libc::name_to_handle_at(
            libc::AT_FDCWD,
            path.as_ptr(),
            place.cast(),
            &raw mut mount_id,
            0,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    let bytes = handle.f_handle[..handle.handle_bytes as usize].to_vec();
    Ok(FileId {
        kind: handle.handle_type as u8,
        bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The handle that knfsd would give out for `path` under `fsid=1`.
    fn locked(path: &Path) -> io::Result<LockedFile> {
        let id = file_id(path)?;
        let metadata = fs::metadata(path)?;
        let mut handle = vec![1, 0, 1, id.kind, 1, 0, 0, 0];
        handle.extend(&id.bytes);
        let device = major(metadata.dev()) << 20 | minor(metadata.dev());
        Ok(LockedFile {
            handle,
            device,
            inode: metadata.ino(),
        })
    }

    /// A file on tmpfs, where handles can be had by root in every environment.
    fn file() -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("a/b c/locked");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "").unwrap();
        (folder, path)
    }

    #[test]
    fn a_handle_leads_to_its_path() {
        let (_folder, path) = file();
        let locked = locked(&path).unwrap();
        let mut finder = PathFinder::new(0).unwrap();
        match finder.find_all(&[locked])[..] {
            [Ok(ref found)] => assert_eq!(*found, path),
            // Handles are opened by who has CAP_DAC_READ_SEARCH.
            [Err(NoPath::NotOpened(ref why))] if !rustix::process::geteuid().is_root() => {
                assert!(why.contains("not permitted"), "{why}");
            }
            ref other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_root_of_an_export_is_found_by_its_inode() {
        let (folder, path) = file();
        let mut root = locked(folder.path()).unwrap();
        root.handle = vec![1, 0, 1, 0, 1, 0, 0, 0];
        let exported = BTreeSet::from([path, folder.path().to_owned()]);
        let mut finder = PathFinder::with(Vec::new(), exported, 0);
        let other = LockedFile {
            inode: root.inode + 1_000_000,
            ..root.clone()
        };
        let found = finder.find_all(&[root, other]);
        let none = Err(NoPath::Handle(HandleError::Root));
        assert_eq!(found, [Ok(folder.path().to_owned()), none]);
    }

    #[test]
    fn a_nameless_file_is_found_by_its_id() {
        let (folder, path) = file();
        // The same inode number alone is not enough.
        fs::hard_link(&path, folder.path().join("z")).unwrap();
        let locked = locked(&path).unwrap();
        let device = device(locked.device);
        let exported = BTreeSet::from([folder.path().to_owned(), folder.path().join("a")]);
        let mut finder = PathFinder::with(Vec::new(), exported.clone(), 1000);
        assert_eq!(finder.exported_from(device), [folder.path()]);
        let [Ok(ref found)] = finder.search(device, &[&locked])[..] else {
            panic!("not found");
        };
        assert_eq!(fs::metadata(found).unwrap().ino(), locked.inode);

        let mut other = locked.clone();
        *other.handle.last_mut().unwrap() ^= 0xff;
        let answer = finder.search(device, &[&other]);
        assert!(
            matches!(answer[..], [Err(NoPath::NotFound { searched: 1.. })]),
            "{answer:?}"
        );

        let mut finder = PathFinder::with(Vec::new(), exported, 1);
        let answer = finder.search(device, &[&locked]);
        assert!(answer.len() == 1 && finder.search_limit == 0);
    }

    #[test]
    fn a_filesystem_that_is_not_mounted_is_said() {
        let file = LockedFile {
            handle: vec![1, 0, 1, 1, 0, 0, 0, 0, 9],
            device: 8 << 20 | 1,
            inode: 2,
        };
        let answer = PathFinder::with(Vec::new(), BTreeSet::new(), 0).find_all(&[file]);
        assert_eq!(answer, [Err(NoPath::NotMounted { major: 8, minor: 1 })]);
    }

    #[test]
    fn a_removed_file_has_no_path() {
        let (_folder, path) = file();
        let opened = File::open(&path).unwrap();
        let inode = opened.metadata().unwrap().ino();
        assert_eq!(name_of(&opened, Some(inode)), Ok(path.clone()));
        assert_eq!(
            name_of(&opened, Some(inode + 1)),
            Err(NoPath::OtherInode(inode))
        );
        fs::remove_file(&path).unwrap();
        assert_eq!(name_of(&opened, Some(inode)), Err(NoPath::Removed));
    }
}
