//! A network, a mount and a UTS namespace that exist without a process: bind mounts of them
//! in a folder keep them.
//!
//! The folder must be on a private mount: the kernel refuses to mount a mount namespace
//! where other namespaces would receive a copy of it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{gettid, sethostname};

use super::processes::{self, Process};

/// `NSFS_MAGIC` of include/uapi/linux/magic.h.
const MAGIC: i64 = 0x6e73_6673;

/// The files, with their names in `/proc/PID/ns`.
const NET: &str = "net";
const MOUNTS: &str = "mnt";
const UTS: &str = "uts";
const ALL: [(&str, CloneFlags); 3] = [
    // First: until then, the paths are those of this namespace.
    (NET, CloneFlags::CLONE_NEWNET),
    (UTS, CloneFlags::CLONE_NEWUTS),
    (MOUNTS, CloneFlags::CLONE_NEWNS),
];

const NOTHING: Option<&str> = None;

/// Namespaces that are kept in a folder, or are to be.
#[derive(Clone, Debug)]
pub struct Namespaces {
    folder: PathBuf,
}

impl Namespaces {
    pub fn in_folder(folder: PathBuf) -> Self {
        Namespaces { folder }
    }

    /// Whether all three are there.
    pub fn exist(&self) -> bool {
        ALL.iter().all(|(file, _)| is_kept(&self.folder.join(file)))
    }

    /// The file of the network namespace.
    pub fn network(&self) -> PathBuf {
        self.folder.join(NET)
    }

    /// Creates them with this host name, after removing what an interrupted run has left of them. The
    /// network namespace is a new one, or the one that `network` stands for. The mount namespace has
    /// copies of this one's mounts; those end with the originals, and what is mounted there does not
    /// appear here. `first` runs there before any other process can enter.
    pub fn create<E: Send>(
        &self,
        host: &str,
        network: Option<&Path>,
        first: impl FnOnce() -> Result<(), E> + Send,
    ) -> io::Result<Result<(), E>> {
        make_private(self.folder.parent().unwrap_or(Path::new("/")))?;
        self.remove()?;
        fs::create_dir_all(&self.folder)?;
        for (file, _) in ALL {
            File::create(self.folder.join(file))?;
        }
        let network = network.map(File::open).transpose()?;
        let (made, namespaces) = mpsc::channel();
        let (release, kept) = mpsc::channel::<()>();
        let result = thread::scope(|scope| {
            let visit = scope.spawn(move || -> io::Result<Result<(), E>> {
                let new = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
                match &network {
                    None => unshare(new | CloneFlags::CLONE_NEWNET)?,
                    Some(network) => {
                        setns(network, CloneFlags::CLONE_NEWNET)?;
                        unshare(new)?;
                    }
                }
                let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
                mount(NOTHING, "/", NOTHING, slave, NOTHING)?;
                sethostname(host)?;
                let done = first();
                if done.is_ok() {
                    // The other side waits for this, or for our end.
                    let _ = made.send(gettid());
                    let _ = kept.recv();
                }
                Ok(done)
            });
            let bound = match namespaces.recv() {
                Ok(thread) => self.keep(thread.as_raw()),
                Err(_) => Ok(()),
            };
            drop(release);
            let visited = (visit.join())
                .unwrap_or_else(|_| Err(io::Error::other("the thread in them panicked")));
            bound.and(visited)
        });
        if !matches!(result, Ok(Ok(()))) {
            self.remove()?;
        }
        result
    }

    /// Binds the namespaces of a thread of this process.
    fn keep(&self, thread: i32) -> io::Result<()> {
        for (file, _) in ALL {
            let source = format!("/proc/self/task/{thread}/ns/{file}");
            let target = self.folder.join(file);
            mount(Some(&*source), &target, NOTHING, MsFlags::MS_BIND, NOTHING)?;
        }
        Ok(())
    }

    /// Does something in these namespaces, on a thread of its own. Programs and threads that
    /// it starts are there too; `/proc/self` and what is below it are not.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let visit = scope.spawn(|| {
                // A thread that shares its working directory with others cannot enter.
                unshare(CloneFlags::CLONE_FS)?;
                self.enter()?;
                Ok(work())
            });
            (visit.join()).unwrap_or_else(|_| Err(io::Error::other("the thread in them panicked")))
        })
    }

    /// Takes the calling thread there, which must be the only one of its process.
    pub fn enter(&self) -> io::Result<()> {
        let files = ALL.map(|(file, kind)| Ok((File::open(self.folder.join(file))?, kind)));
        for opened in files {
            let (file, kind): (File, CloneFlags) = opened.map_err(|error: io::Error| error)?;
            setns(&file, kind)?;
        }
        Ok(())
    }

    /// The processes in one of the namespaces.
    pub fn processes(&self) -> io::Result<Vec<Process>> {
        let inode = |file: &str| fs::metadata(self.folder.join(file)).map(|found| found.ino());
        processes::in_namespaces(inode(NET)?, inode(MOUNTS)?)
    }

    /// Stops keeping them. They end with the last process in them.
    pub fn remove(&self) -> io::Result<()> {
        for (file, _) in ALL {
            let file = self.folder.join(file);
            while is_kept(&file) {
                umount2(&file, MntFlags::MNT_DETACH)?;
            }
            absent_is_fine(fs::remove_file(&file))?;
        }
        absent_is_fine(fs::remove_dir(&self.folder))
    }
}

/// Runs something on a thread of its own, in a UTS namespace with another host name. Programs that it
/// starts are there too.
pub fn with_host_name<T: Send>(host: &OsStr, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let visit = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWUTS)?;
            sethostname(host)?;
            Ok(work())
        });
        (visit.join()).unwrap_or_else(|_| Err(io::Error::other("the thread there panicked")))
    })
}

/// Whether a namespace is mounted here.
fn is_kept(file: &Path) -> bool {
    rustix::fs::statfs(file).is_ok_and(|found| found.f_type == MAGIC)
}

fn absent_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Makes the folder a private mount of itself, if it is none.
fn make_private(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let is_there = (super::mounts::mounts()?.iter()).any(|mount| mount.mount_point == folder);
    if !is_there {
        mount(Some(folder), folder, NOTHING, MsFlags::MS_BIND, NOTHING)?;
    }
    mount(NOTHING, folder, NOTHING, MsFlags::MS_PRIVATE, NOTHING)?;
    Ok(())
}

/// Ends [`Namespaces::create`]'s private mount, once no folder is in it.
pub fn remove_mount(folder: &Path) -> io::Result<bool> {
    let is_there = (super::mounts::mounts()?.iter()).any(|mount| mount.mount_point == folder);
    let is_empty = fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    if is_there && is_empty {
        umount2(folder, MntFlags::MNT_DETACH)?;
    }
    Ok(is_there && is_empty)
}
