//! A VIP as an NFS server of its own: a network, a mount and a UTS namespace with its own knfsd, lockd,
//! rpcbind, statd, nfsdcld and mountd. It starts, stops and moves without disturbing any other server
//! of the node, and with the kernel's own grace.

pub mod check;
pub mod daemons;
pub mod description;
mod facts;
pub mod health;
pub mod holder;
mod link;
mod mounts;
pub mod phase;
pub mod program;
pub mod start;
pub mod status;
pub mod stop;
pub mod supervise;
pub mod supervision;
pub mod systemd;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::files::lock::{Held, LockError, LockFile, Mode};
use crate::files::run::{self, RunError};
use crate::kernel::lockd::LockdError;
use crate::kernel::namespaces::{self, Namespaces};
use crate::kernel::netns;
use crate::kernel::nfsd::NfsdError;
use crate::kernel::processes::{self, Process};
use description::{Description, DescriptionError};
pub use facts::{Others, served, wake_lockd};
use program::{ProgramError, wait_for};

/// Below our directory in `/run`: one directory for each running server.
const FOLDER: &str = "servers";

/// Why a server could not be started, stopped or checked.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Description(#[from] DescriptionError),
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error(transparent)]
    Nfsd(#[from] NfsdError),
    #[error(transparent)]
    Lockd(#[from] LockdError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot {action} the namespaces of server {name}")]
    Namespaces {
        action: &'static str,
        name: String,
        source: io::Error,
    },
    #[error("server {0} is running (`nlmfo server status {0}`)")]
    Running(String),
    #[error("server {0} is not running on this node")]
    NotRunning(String),
    #[error("{program} of server {name} {problem}{}", printed(.said))]
    Daemon {
        name: String,
        program: &'static str,
        problem: String,
        /// What it printed; empty if nothing.
        said: String,
    },
    #[error("{0}")]
    Refused(String),
    #[error("server {name} was not started: {reason}")]
    NotStarted {
        name: String,
        reason: String,
        /// It may run on another node.
        is_elsewhere: bool,
    },
}

fn printed(said: &str) -> String {
    match said {
        "" => String::new(),
        said => format!("; it said: {said}"),
    }
}

impl ServerError {
    /// Whether the server may run on another node.
    pub fn is_elsewhere(&self) -> bool {
        matches!(
            self,
            ServerError::NotStarted {
                is_elsewhere: true,
                ..
            }
        )
    }

    /// For `map_err`.
    fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| ServerError::Io {
            action,
            path,
            source,
        }
    }
}

/// A server that is configured on this node. It may run here or not.
#[derive(Clone, Debug)]
pub struct Server {
    pub description: Description,
    namespaces: Namespaces,
    /// The name of this node; in the server's namespaces, that is its scope.
    node: String,
}

impl Server {
    pub fn new(description: Description) -> Self {
        let folder = folder().join(&description.name);
        Server {
            namespaces: Namespaces::in_folder(folder),
            description,
            node: netns::node(),
        }
    }

    pub fn named(name: &str) -> Result<Self, ServerError> {
        Ok(Server::new(description::read(name)?))
    }

    /// All servers that are configured on this node.
    pub fn all() -> Result<Vec<Self>, ServerError> {
        let all = description::read_all()?;
        Ok(all.into_values().map(Server::new).collect())
    }

    /// The configured server that has this VIP.
    pub fn of_vip(vip: IpAddr) -> Result<Option<Self>, ServerError> {
        let mut all = Server::all()?.into_iter();
        Ok(all.find(|server| server.description.has_vip(vip)))
    }

    pub fn name(&self) -> &str {
        &self.description.name
    }

    /// Whether its namespaces are on this node.
    pub fn is_here(&self) -> bool {
        self.namespaces.exist()
    }

    fn ensure_here(&self) -> Result<(), ServerError> {
        match self.is_here() {
            true => Ok(()),
            false => Err(ServerError::NotRunning(self.name().to_owned())),
        }
    }

    /// Does something in its namespaces, on a thread of its own.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, ServerError> {
        self.ensure_here()?;
        let done = self.namespaces.within(work);
        done.map_err(self.namespaces_error("enter"))
    }

    /// Moves this process into its namespaces; the process must have only one thread.
    pub fn enter(&self) -> Result<(), ServerError> {
        self.ensure_here()?;
        let done = self.namespaces.enter();
        done.map_err(self.namespaces_error("enter"))
    }

    fn namespaces_error(&self, action: &'static str) -> impl FnOnce(io::Error) -> ServerError {
        let name = self.name().to_owned();
        move |source| ServerError::Namespaces {
            action,
            name,
            source,
        }
    }

    /// Prevents other commands from starting or stopping it. Waits for a command that does so, or that
    /// restarts one of its daemons.
    pub fn lock(&self) -> Result<Held, ServerError> {
        let mut held = None;
        wait_for(LOCK, || {
            held = self.try_lock()?;
            Ok::<_, ServerError>(held.is_some())
        })?;
        let name = self.name();
        held.ok_or_else(|| {
            ServerError::Refused(format!(
                "another nlmfo is starting or stopping server {name}"
            ))
        })
    }

    /// [`lock`](Self::lock), or none if another command holds it.
    pub fn try_lock(&self) -> Result<Option<Held>, ServerError> {
        self.try_file("server", "is starting or stopping")
    }

    /// Prevents other processes from supervising it.
    pub fn supervise(&self) -> Result<Held, ServerError> {
        let held = self.try_file("supervisor", "supervises")?;
        let name = self.name();
        held.ok_or_else(|| {
            ServerError::Refused(format!("another nlmfo supervises server {name} already"))
        })
    }

    fn try_file(&self, kind: &str, does: &str) -> Result<Option<Held>, ServerError> {
        let name = self.name();
        let file = LockFile::named(&format!("{kind}-{name}"), format!("{does} server {name}"))?;
        Ok(file.try_take(Mode::Exclusive)?)
    }

    /// The directory of the state numbers of its notifications.
    pub fn state_dir(&self) -> PathBuf {
        self.description.state.join("nlmfo")
    }

    /// statd's list of clients, and those whose notification was begun.
    pub fn monitored(&self) -> [PathBuf; 2] {
        ["sm", "sm.bak"].map(|name| self.statd().join(name))
    }

    /// Number of clients that statd knows. Runs in the server's namespaces.
    fn monitors(&self) -> usize {
        let lists = self.monitored();
        let counts = lists.map(|list| std::fs::read_dir(list).map_or(0, Iterator::count));
        counts.iter().sum()
    }

    /// nfsdcld's database, in the server's namespaces.
    pub fn nfs4_records(&self) -> PathBuf {
        self.nfsdcld().join("main.sqlite")
    }

    /// The processes in its namespaces, which are identified by paths of the node.
    fn processes(&self) -> Result<Vec<Process>, ServerError> {
        processes::beside().map_err(self.namespaces_error("list the processes in"))
    }

    fn statd(&self) -> PathBuf {
        self.description.state.join("statd")
    }

    fn nfsdcld(&self) -> PathBuf {
        self.description.state.join("cld")
    }
}

fn folder() -> PathBuf {
    run::folder().join(FOLDER)
}

/// The names of the servers whose namespaces are on this node.
pub fn running() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names
        .filter(|name| Namespaces::in_folder(folder().join(name)).exist())
        .collect();
    names.sort();
    names
}

/// The namespaces of a running server, configured or not.
fn namespaces_of(name: &str) -> Result<Namespaces, ServerError> {
    match running().iter().any(|running| running == name) {
        true => Ok(Namespaces::in_folder(folder().join(name))),
        false => Err(ServerError::NotRunning(name.to_owned())),
    }
}

fn cannot_enter(name: &str) -> impl FnOnce(io::Error) -> ServerError {
    let name = name.to_owned();
    move |source| ServerError::Namespaces {
        action: "enter",
        name,
        source,
    }
}

/// [`Server::enter`] of a running server by name.
pub fn enter(name: &str) -> Result<(), ServerError> {
    let entered = namespaces_of(name)?.enter();
    entered.map_err(cannot_enter(name))
}

/// [`Server::within`] of a running server by name.
pub fn within<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, ServerError> {
    let done = namespaces_of(name)?.within(work);
    done.map_err(cannot_enter(name))
}

/// Maximum time to wait for another command.
const LOCK: Duration = Duration::from_mins(1);

/// Maximum time for a step that the kernel or a daemon needs a moment for.
const STEP: Duration = Duration::from_secs(30);

/// Kills every server of this node, keeps their records, and removes what is left of them. Returns how
/// many there were.
///
/// # Errors
/// If a process or a mount cannot be ended.
pub fn cleanup() -> Result<usize, ServerError> {
    let mut removed = 0;
    let folder = folder();
    for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
        let namespaces = Namespaces::in_folder(entry.path());
        if namespaces.exist() {
            stop::end(&namespaces)?;
        }
        (namespaces.remove()).map_err(ServerError::io("remove", &entry.path()))?;
        removed += 1;
    }
    namespaces::remove_mount(&folder).map_err(ServerError::io("unmount", &folder))?;
    Ok(removed)
}
