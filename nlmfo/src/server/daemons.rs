//! The daemons of a server: rpcbind, statd and mountd (NFSv3 and mounting), nfsdcld (the records
//! of NFSv4 clients).

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::mounts::{OWN, PIPES};
use super::program::{program, wait_for};
use super::{STEP, Server, ServerError, health};
use crate::kernel::processes::{self, Process};
use crate::runtime;

pub(super) const RPCBIND_SOCKET: &str = "/run/rpcbind.sock";

/// The end of the name of the pipe through which nfsd asks nfsdcld.
pub(super) const PIPE: &str = "nfsd/cld";

/// Time for a daemon to end after SIGTERM.
const TERM: Duration = Duration::from_secs(3);

/// A daemon, in the order in which they start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Daemon {
    Rpcbind,
    Statd,
    Nfsdcld,
    Mountd,
}

impl Daemon {
    pub fn program(self) -> &'static str {
        match self {
            Daemon::Rpcbind => "rpcbind",
            Daemon::Statd => "rpc.statd",
            Daemon::Nfsdcld => "nfsdcld",
            Daemon::Mountd => "rpc.mountd",
        }
    }

    fn arguments(self, server: &Server) -> Vec<String> {
        let path = |path: &Path| path.display().to_string();
        match self {
            Daemon::Rpcbind => vec!["-f".into(), "-w".into()],
            Daemon::Statd => vec![
                "-F".into(),
                "--no-notify".into(),
                "-P".into(),
                path(&server.statd()),
            ],
            Daemon::Nfsdcld => vec![
                "-F".into(),
                "-p".into(),
                PIPES.into(),
                "-s".into(),
                path(&server.nfsdcld()),
            ],
            Daemon::Mountd => vec!["-F".into()],
        }
    }

    /// Its RPC program and version, if it has one.
    pub(super) fn rpc(self) -> Option<(u32, u32)> {
        match self {
            Daemon::Rpcbind | Daemon::Nfsdcld => None,
            Daemon::Statd => Some((100_024, 1)),
            Daemon::Mountd => Some((100_005, 3)),
        }
    }

    /// Whether it serves, in the server's namespaces.
    fn is_ready(self, id: i32) -> bool {
        match self {
            Daemon::Rpcbind => UnixStream::connect(RPCBIND_SOCKET).is_ok(),
            // Not by rpcbind's list alone, which still has the previous process after it was killed.
            Daemon::Statd | Daemon::Mountd => {
                runtime::finish(move || health::answers(self)).is_ok_and(|answer| answer.is_ok())
            }
            // nfsd asks it once, when nfsd starts, and continues without it if it is not there.
            Daemon::Nfsdcld => processes::watches_files(id),
        }
    }
}

/// The daemons that a server needs. mountd answers the kernel's questions about exports for
/// every version, and registers itself with rpcbind.
pub fn of(server: &Server) -> Vec<Daemon> {
    let all = [
        Daemon::Rpcbind,
        Daemon::Statd,
        Daemon::Nfsdcld,
        Daemon::Mountd,
    ];
    let is_needed = |daemon: &Daemon| match daemon {
        Daemon::Rpcbind | Daemon::Mountd => true,
        Daemon::Statd => server.description.serves_v3(),
        Daemon::Nfsdcld => server.description.serves_v4(),
    };
    all.into_iter().filter(is_needed).collect()
}

/// A daemon that was started and does not serve yet.
#[must_use = "it may not serve"]
pub struct Starting<'a> {
    server: &'a Server,
    daemon: Daemon,
    child: Child,
}

/// Starts a daemon in the server's namespaces, where this thread is, and waits until it serves.
pub fn start(server: &Server, daemon: Daemon) -> Result<Child, ServerError> {
    spawn(server, daemon)?.serving()
}

/// Starts a daemon in the server's namespaces, where this thread is.
pub fn spawn(server: &Server, daemon: Daemon) -> Result<Starting<'_>, ServerError> {
    let name = daemon.program();
    let log = log(daemon);
    let said = || File::create(&log).and_then(|file| Ok((file.try_clone()?, file)));
    let (out, err) = said().map_err(ServerError::io("write", &log))?;
    let mut command = program(name);
    let child = command
        .args(daemon.arguments(server))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(ServerError::io("run", Path::new(name)))?;
    Ok(Starting {
        server,
        daemon,
        child,
    })
}

impl Starting<'_> {
    pub fn daemon(&self) -> Daemon {
        self.daemon
    }

    /// Waits until it serves. In the server's namespaces.
    ///
    /// # Errors
    /// If it ends or takes too long; then it is killed.
    pub fn serving(mut self) -> Result<Child, ServerError> {
        let id = self.child.id().cast_signed();
        let mut ended = None;
        let is_ready: io::Result<bool> = wait_for(STEP, || {
            ended = self.child.try_wait()?;
            Ok(ended.is_some() || self.daemon.is_ready(id))
        });
        let problem = match (is_ready, ended) {
            (Ok(true), None) => return Ok(self.child),
            (Err(error), _) => error.to_string(),
            (_, Some(status)) => format!("ended ({status})"),
            (Ok(false), None) => format!("does not serve after {STEP:?}"),
        };
        let _ = self.child.kill();
        Err(ServerError::Daemon {
            name: self.server.name().to_owned(),
            program: self.daemon.program(),
            problem,
            said: said_last(self.daemon),
        })
    }
}

fn log(daemon: Daemon) -> PathBuf {
    Path::new(OWN).join(format!("{}.log", daemon.program()))
}

/// What it has written since it started. Runs in the server's namespaces.
fn said_last(daemon: Daemon) -> String {
    let said = fs::read(log(daemon)).unwrap_or_default();
    String::from_utf8_lossy(&said).trim().to_owned()
}

/// Kills a daemon that does not serve, if there is one, and starts it again. Runs in the server's
/// namespaces. Returns the new process, and what the last one wrote.
///
/// # Errors
/// If the last one does not end, or the new one does not serve.
pub fn restart(server: &Server, daemon: Daemon) -> Result<(i32, String), ServerError> {
    kill_and_wait(server, daemon)?;
    let said = said_last(daemon);
    let id = start(server, daemon)?.id().cast_signed();
    if daemon == Daemon::Nfsdcld {
        ensure_asked(server, id)?;
    }
    Ok((id, said))
}

/// Kills a daemon at once (SIGKILL), and waits for its end.
///
/// # Errors
/// If it does not end: it may wait for storage, in the kernel.
pub fn kill_and_wait(server: &Server, daemon: Daemon) -> Result<(), ServerError> {
    let all = server.processes()?;
    let Some(process) = found(daemon, &all) else {
        return Ok(());
    };
    kill_now(process);
    let is_gone = || Ok::<_, ServerError>(found(daemon, &server.processes()?).is_none());
    match wait_for(STEP, is_gone)? {
        true => Ok(()),
        false => Err(ServerError::Refused(format!(
            "{} of server {} (process {}) does not end",
            daemon.program(),
            server.name(),
            process.id
        ))),
    }
}

/// Those of the server's processes that run this program: the kernel keeps 15 bytes of its name.
pub fn found(daemon: Daemon, all: &[Process]) -> Option<&Process> {
    all.iter().find(|process| process.name == daemon.program())
}

/// An error unless nfsd has asked nfsdcld: nfsdcld then has the pipe open.
pub fn ensure_asked(server: &Server, nfsdcld: i32) -> Result<(), ServerError> {
    let is_asked = wait_for(STEP, || {
        Ok::<_, ServerError>(processes::has_open(nfsdcld, PIPE))
    });
    match is_asked? {
        true => Ok(()),
        false => Err(ServerError::Daemon {
            name: server.name().to_owned(),
            program: Daemon::Nfsdcld.program(),
            problem: "was not asked by nfsd, which then has no records of clients".into(),
            said: String::new(),
        }),
    }
}

/// Kills a process at once.
pub fn kill_now(process: &Process) {
    let _ = kill(Pid::from_raw(process.id), Signal::SIGKILL);
}

/// Kills all processes that `all` lists, until it lists none.
///
/// # Errors
/// Those of `all`, or if processes remain.
pub fn end(mut all: impl FnMut() -> Result<Vec<Process>, ServerError>) -> Result<(), ServerError> {
    for (signal, limit) in [(Signal::SIGTERM, TERM), (Signal::SIGKILL, STEP)] {
        for process in all()? {
            let _ = kill(Pid::from_raw(process.id), signal);
        }
        if wait_for(limit, || Ok::<_, ServerError>(all()?.is_empty()))? {
            return Ok(());
        }
    }
    let left = all()?.into_iter();
    let left: Vec<String> = left
        .map(|one| format!("{} ({})", one.id, one.name))
        .collect();
    Err(ServerError::Refused(format!(
        "these processes of the server do not end: {}",
        left.join(", ")
    )))
}
