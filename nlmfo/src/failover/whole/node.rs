//! The node's own NFS server.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::time::sleep;
use tracing::warn;

use super::server::{Clients, NotReady, Server, ServerError};
use super::{identity, sm_notify, stop};
use crate::causes::chain;
use crate::failover::services::look;
use crate::files::{self, LIMIT, PRIVATE};
use crate::kernel::nfsd::{self, Nfsd, NfsdError};
use crate::kernel::{namespaces, netns, nfsdcld};
use crate::notify::sm::Listed;
use crate::notify::state_dir::{self, Readers, StateDir};
use crate::server::program::{self, run_within};

const UNIT: &str = "nfs-server.service";
const NFSDCLD: &str = "nfsdcld.service";
const STATD: &str = "rpc-statd.service";

/// Exists while systemd is the init of this machine (`sd_booted(3)`).
const BOOTED: &str = "/run/systemd/system";

/// Where statd keeps the names of monitored clients, in Fedora's family and elsewhere; and those
/// that sm-notify has still to notify.
const MONITORED: [&str; 4] = [
    "/var/lib/nfs/statd/sm",
    "/var/lib/nfs/statd/sm.bak",
    "/var/lib/nfs/sm",
    "/var/lib/nfs/sm.bak",
];

/// Maximum time until a started daemon answers.
const READY_TIMEOUT: Duration = Duration::from_secs(5);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// How the server is stopped and started.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Means {
    /// systemd's unit.
    Unit,
    /// `rpc.nfsd`, with the arguments that start the server as it is now.
    Program(Vec<OsString>),
}

/// The NFS server of this network namespace.
#[derive(Clone, Debug)]
pub struct NodeServer {
    means: Means,
    systemd: bool,
    /// Where the record of a stop is.
    state: StateDir,
    /// Shell commands that replace the default ones.
    stop: Option<OsString>,
    start: Option<OsString>,
    /// Maximum time for a stop and for a start.
    deadline: Duration,
}

impl NodeServer {
    /// Finds out how the server is stopped and started. The arguments of `rpc.nfsd` that start it as it
    /// is now are stored in the state directory, for when it does not run.
    ///
    /// # Errors
    /// If nfsd's files cannot be read.
    pub async fn find(
        state: &StateDir,
        stop: Option<OsString>,
        start: Option<OsString>,
        deadline: Duration,
    ) -> Result<Self, NfsdError> {
        let systemd = std::path::Path::new(BOOTED).exists();
        let means = match systemd && has_unit(nfsd::runs()).await {
            true => Means::Unit,
            false => Means::Program(kept(state, arguments()?)),
        };
        Ok(NodeServer {
            means,
            systemd,
            state: state.clone(),
            stop,
            start,
            deadline,
        })
    }

    async fn run<S: AsRef<OsStr>>(&self, name: &str, arguments: &[S]) -> Result<(), ServerError> {
        Ok(run_within(name, arguments, self.deadline).await?)
    }

    async fn shell(&self, command: &OsStr) -> Result<(), ServerError> {
        self.run("sh", &[OsStr::new("-c"), command]).await
    }

    /// Starts a daemon by its unit, where there are units, or by `program`.
    async fn daemon(
        &self,
        unit: &str,
        program: &str,
        arguments: &[&str],
    ) -> Result<(), ServerError> {
        match self.systemd {
            true => self.run("systemctl", &["restart", unit]).await,
            false => self.run(program, arguments).await,
        }
    }

    /// Starts nfsd. NFSv4 clients reclaim only if it has the same identity as before the stop, which
    /// may have been on a node with another name.
    async fn threads(&self, arguments: &[OsString]) -> Result<(), ServerError> {
        let record = stop::stored(&self.state).ok().flatten();
        let recorded = record.and_then(|record| record.identity);
        let scope = match recorded.or_else(|| identity::remembered(&self.state)) {
            Some(identity) if identity.scope != netns::node().as_str() => identity.scope,
            _ => return self.run("rpc.nfsd", arguments).await,
        };
        let scope = OsStr::from_bytes(scope.as_bytes());
        let started = namespaces::with_host_name(scope, || program::run("rpc.nfsd", arguments));
        let failed = |error| ServerError::Other(format!("rpc.nfsd under another name: {error}"));
        Ok(started.map_err(failed)??)
    }

    async fn nfsdcld(&self) -> Result<(), String> {
        let listens = || nfsdcld::listens().map_err(|error| error.to_string());
        if listens()? {
            return Ok(());
        }
        let pipes = nfsdcld::pipes().map(|path| path.display().to_string());
        let arguments = match &pipes {
            Some(pipes) => vec!["-p", pipes],
            None => Vec::new(),
        };
        let started = self.daemon(NFSDCLD, "nfsdcld", &arguments).await;
        started.map_err(|error| chain(&error))?;
        let until = Instant::now() + READY_TIMEOUT;
        while !listens()? {
            if Instant::now() >= until {
                return Err("it does not watch nfsd's pipe".to_owned());
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    async fn statd(&self) -> Result<(), String> {
        if let Some(Ok(())) = look::statd().await {
            return Ok(());
        }
        let started = self.daemon(STATD, "rpc.statd", &["--no-notify"]).await;
        started.map_err(|error| chain(&error))?;
        let answer = look::statd().await;
        answer.unwrap_or_else(|| Err("it is not registered with rpcbind".to_owned()))
    }
}

impl Server for NodeServer {
    fn title(&self) -> String {
        let by = |command: &Option<OsString>, otherwise: &str| match command {
            Some(command) => format!("`{}`", command.display()),
            None => otherwise.to_owned(),
        };
        let means = match &self.means {
            Means::Unit => UNIT,
            Means::Program(_) => "rpc.nfsd",
        };
        let (stop, start) = (by(&self.stop, means), by(&self.start, means));
        match stop == start {
            true => format!("the NFS server of this node ({stop})"),
            false => format!("the NFS server of this node (stop: {stop}, start: {start})"),
        }
    }

    async fn stop(&self) -> Result<(), ServerError> {
        if let Some(command) = &self.stop {
            return self.shell(command).await;
        }
        // At once: a lock that is granted after the record may be lost.
        if let Ok(nfsd) = Nfsd::mounted()
            && nfsd.threads().is_ok_and(|threads| threads > 0)
        {
            let stopped = tokio::task::spawn_blocking(move || nfsd.stop()).await;
            if let Ok(Err(error)) = stopped {
                return Err(ServerError::Other(chain(&error)));
            }
        }
        match &self.means {
            Means::Unit => self.run("systemctl", &["stop", UNIT]).await,
            Means::Program(_) => Ok(()),
        }
    }

    async fn prepare(&self) -> Vec<NotReady> {
        let (nfsdcld, statd) = tokio::join!(self.nfsdcld(), self.statd());
        let mut missing = Vec::new();
        if let Err(error) = nfsdcld {
            missing.push(NotReady {
                clients: Clients::Nfs4,
                reason: format!("nfsdcld does not run, NFSv4 clients cannot reclaim: {error}"),
            });
        }
        if let Err(error) = statd {
            missing.push(NotReady {
                clients: Clients::Nfs3,
                reason: format!("rpc.statd does not answer, NFSv3 clients cannot reclaim: {error}"),
            });
        }
        missing
    }

    async fn start(&self) -> Result<(), ServerError> {
        if nfsd::runs() {
            return Ok(());
        }
        match (&self.start, &self.means) {
            (Some(command), _) => self.shell(command).await?,
            (None, Means::Unit) => self.run("systemctl", &["start", UNIT]).await?,
            (None, Means::Program(arguments)) => self.threads(arguments).await?,
        }
        match nfsd::runs() {
            true => Ok(()),
            false => Err(ServerError::Other(
                "it was started, but nfsd has no threads".to_owned(),
            )),
        }
    }

    async fn notify_at_boot(&self, listed: &[Listed]) -> Result<(), ServerError> {
        sm_notify::have_done(listed, self.deadline).await
    }

    fn nfs4_records(&self) -> Option<PathBuf> {
        nfsdcld::database()
    }

    fn monitored(&self) -> Vec<PathBuf> {
        let folders = MONITORED.iter().map(PathBuf::from);
        folders.filter(|folder| folder.is_dir()).collect()
    }
}

/// Whether systemd has the unit, and runs the server by it if it runs.
async fn has_unit(runs: bool) -> bool {
    let asked = Command::new("systemctl")
        .args(["show", "--property=LoadState,ActiveState", UNIT])
        .output()
        .await;
    let Ok(asked) = asked else { return false };
    let text = String::from_utf8_lossy(&asked.stdout);
    let has = |line: &str| text.lines().any(|other| other == line);
    has("LoadState=loaded") && (!runs || has("ActiveState=active"))
}

/// These arguments, or those of the last time that the server ran. Without any, `rpc.nfsd` uses its
/// configuration.
fn kept(state: &StateDir, now: Option<Vec<String>>) -> Vec<OsString> {
    let folder = state.path().join("restart");
    let path = folder.join("rpc.nfsd");
    let arguments = match now {
        Some(now) => {
            let written = state_dir::create(&folder, Readers::Nobody)
                .and_then(|()| files::write_whole(&path, now.join("\n").as_bytes(), PRIVATE));
            if let Err(error) = written {
                warn!(%error, path = %path.display(), "not written");
            }
            now
        }
        None => {
            let text = files::read(&path, LIMIT).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            text.lines().map(str::to_owned).collect()
        }
    };
    arguments.into_iter().map(OsString::from).collect()
}

/// The arguments of `rpc.nfsd` that start the running server as it is now; none if it does not
/// run.
fn arguments() -> Result<Option<Vec<String>>, NfsdError> {
    let nfsd = Nfsd::mounted()?;
    let threads = nfsd.threads()?;
    if threads == 0 {
        return Ok(None);
    }
    let ports = nfsd.ports()?;
    let has = |transport: &str| ports.iter().any(|port| port.starts_with(transport));
    let mut arguments: Vec<String> = Vec::new();
    arguments.extend(has("udp").then(|| "--udp".to_owned()));
    arguments.extend((!has("tcp")).then(|| "--no-tcp".to_owned()));
    let port = ports.iter().find_map(|port| port.split(' ').nth(1));
    if let Some(port) = port.filter(|port| *port != "2049") {
        arguments.extend(["--port".to_owned(), port.to_owned()]);
    }
    let versions = nfsd.versions()?;
    let mut without = |version: &str| {
        arguments.extend(["--no-nfs-version".to_owned(), version.to_owned()]);
    };
    if !versions.has_v3() {
        without("3");
    }
    match (0..3).any(|minor| versions.has_v4(minor)) {
        false => without("4"),
        true => {
            for minor in (0..3).filter(|&minor| !versions.has_v4(minor)) {
                without(&format!("4.{minor}"));
            }
        }
    }
    arguments.push(threads.to_string());
    Ok(Some(arguments))
}
