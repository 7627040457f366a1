//! The daemons of a server: rpcbind, statd and mountd (NFSv3 and mounting), nfsdcld (the records
//! of NFSv4 clients).

use std::fs::{self, File};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::mounts::{OWN, PIPES};
use super::program::{program, wait_for};
use super::{STEP, Server, ServerError};
use crate::kernel::processes::{self, Process};
use crate::rpc::portmap::Registered;
use crate::runtime;
use nlmfo_common::protocol::Transport;

const RPCBIND_SOCKET: &str = "/run/rpcbind.sock";

/// The end of the name of the pipe through which nfsd asks nfsdcld.
const PIPE: &str = "nfsd/cld";

/// Time for a daemon to end after SIGTERM.
const TERM: Duration = Duration::from_secs(3);

/// A daemon, in the order in which they start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// Whether it serves, in the server's namespaces.
    fn is_ready(self, id: i32) -> bool {
        match self {
            Daemon::Rpcbind => UnixStream::connect(RPCBIND_SOCKET).is_ok(),
            Daemon::Statd => is_registered(100_024, 1),
            // nfsd asks it once, when it starts, and does without it if it is not there.
            Daemon::Nfsdcld => processes::watches_files(id),
            Daemon::Mountd => is_registered(100_005, 3),
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

fn is_registered(program: u32, version: u32) -> bool {
    let asked = runtime::finish(|| Registered::look_up(Duration::from_secs(5)));
    let registered = matches!(asked, Ok(Ok(found))
        if found.port(program, version, Transport::Tcp, false).is_some());
    registered
}

/// Starts a daemon in the server's namespaces, where this thread is, and waits until it serves.
pub fn start(server: &Server, daemon: Daemon) -> Result<Child, ServerError> {
    let name = daemon.program();
    let log = Path::new(OWN).join(format!("{name}.log"));
    let said = || File::create(&log).and_then(|file| Ok((file.try_clone()?, file)));
    let (out, err) = said().map_err(ServerError::io("write", &log))?;
    let mut command = program(name);
    let mut child = command
        .args(daemon.arguments(server))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(out)
        .stderr(err)
        .spawn()
        .map_err(ServerError::io("run", Path::new(name)))?;
    let id = child.id().cast_signed();
    let mut ended = None;
    let is_ready: io::Result<bool> = wait_for(STEP, || {
        ended = child.try_wait()?;
        Ok(ended.is_some() || daemon.is_ready(id))
    });
    let problem = match (is_ready, ended) {
        (Ok(true), None) => return Ok(child),
        (Err(error), _) => error.to_string(),
        (_, Some(status)) => format!("ended ({status})"),
        (Ok(false), None) => format!("does not serve after {STEP:?}"),
    };
    let _ = child.kill();
    Err(ServerError::Daemon {
        name: server.name().to_owned(),
        program: name,
        problem,
        said: fs::read_to_string(&log)
            .unwrap_or_default()
            .trim()
            .to_owned(),
    })
}

/// Those of the server's processes that run this program: the kernel keeps 15 bytes of its name.
pub fn found(daemon: Daemon, all: &[Process]) -> Option<&Process> {
    all.iter().find(|process| process.name == daemon.program())
}

/// An error unless nfsd asks nfsdcld, which holds its end of their pipe then.
pub fn ensure_asked(server: &Server, nfsdcld: i32) -> Result<(), ServerError> {
    let is_asked = wait_for(STEP, || {
        Ok::<_, ServerError>(processes::has_open(nfsdcld, PIPE))
    });
    match is_asked? {
        true => Ok(()),
        false => Err(ServerError::Daemon {
            name: server.name().to_owned(),
            program: Daemon::Nfsdcld.program(),
            problem: "is not asked by nfsd, which has no records of clients then".into(),
            said: String::new(),
        }),
    }
}

/// Kills a process at once, without any last word of it.
pub fn kill_now(process: &Process) {
    let _ = kill(Pid::from_raw(process.id), Signal::SIGKILL);
}

/// Ends all processes that `all` lists, until it lists none.
///
/// # Errors
/// Those of `all`; or if processes stay.
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
