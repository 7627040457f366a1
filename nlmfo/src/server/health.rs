//! Whether the daemons of a server serve. All of this runs in the server's namespaces.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nlmfo_common::protocol::Transport;

use super::daemons::{self, Daemon, PIPE, RPCBIND_SOCKET};
use super::mounts::OWN;
use super::supervise::{Health, Seen};
use super::{Server, ServerError};
use crate::causes::chain;
use crate::files;
use crate::kernel::nfsd::Nfsd;
use crate::kernel::processes;
use crate::rpc::alive;
use crate::rpc::portmap::{self, Registered};
use crate::rpc::registration::Registration;
use crate::runtime;

/// Maximum time for an answer. Each daemon has one thread, and a name server may delay it.
const ANSWER: Duration = Duration::from_secs(5);

/// The complete list of registrations with rpcbind, stored below the server's own `/run`.
const REGISTERED: &str = "registered.json";

/// Maximum size; larger than any such file of nlmfo.
const LIMIT: u64 = 1 << 20;

/// The result of one check.
#[derive(Clone, Debug, Default)]
pub struct Look {
    /// Number of nfsd's threads.
    pub threads: u32,
    pub daemons: Vec<Seen>,
    /// The registrations that rpcbind has lost.
    pub forgotten: Vec<Registration>,
}

impl Look {
    /// The processes of the daemons.
    pub fn processes(&self) -> Vec<i32> {
        let daemons = self.daemons.iter();
        daemons.filter_map(|seen| seen.process).collect()
    }
}

/// Number of nfsd's threads.
pub fn threads() -> Result<u32, ServerError> {
    Ok(Nfsd::mounted()?.threads()?)
}

/// Checks nfsd and the daemons.
pub fn look(server: &Server) -> Result<Look, ServerError> {
    let threads = threads()?;
    let all = server.processes()?;
    let registered = runtime::finish(|| portmap::registrations(ANSWER));
    let registered = match registered {
        Ok(Ok(registered)) => Ok(registered),
        Ok(Err(error)) => Err(chain(&error)),
        Err(error) => Err(error.to_string()),
    };
    let seen = daemons::of(server).into_iter().map(|daemon| {
        let process = daemons::found(daemon, &all).map(|process| process.id);
        let health = match process {
            None => Health::Ended,
            Some(process) => health(daemon, process, registered.as_ref().err()),
        };
        Seen {
            daemon,
            process,
            health,
        }
    });
    let seen: Vec<Seen> = seen.collect();
    let mut forgotten = Vec::new();
    if let Ok(now) = registered {
        // A daemon that is started again registers itself.
        let has_ended = |one: &Registration| {
            seen.iter().any(|seen| {
                let program = seen.daemon.rpc().map(|(program, _)| program);
                seen.health == Health::Ended && program == Some(one.program)
            })
        };
        forgotten = remembered();
        forgotten.retain(|one| !is_among(one, &now) && !has_ended(one));
        if forgotten.is_empty() {
            remember(&now)?;
        }
    }
    Ok(Look {
        threads,
        daemons: seen,
        forgotten,
    })
}

fn health(daemon: Daemon, process: i32, rpcbind: Option<&String>) -> Health {
    let answer = match (daemon, rpcbind) {
        (Daemon::Rpcbind, None) => Ok(()),
        (Daemon::Rpcbind, Some(error)) => Err(error.clone()),
        // Its port cannot be found without rpcbind.
        (Daemon::Statd | Daemon::Mountd, Some(_)) => return Health::Unknown,
        (Daemon::Statd | Daemon::Mountd, None) => {
            runtime::finish(move || answers(daemon)).unwrap_or_else(|error| Err(error.to_string()))
        }
        (Daemon::Nfsdcld, _) => nfsdcld(process),
    };
    match answer {
        Ok(()) => Health::Serves,
        Err(problem) => Health::Silent(problem),
    }
}

/// nfsdcld has no NULL call: only the kernel's state of its process is checked.
fn nfsdcld(process: i32) -> Result<(), String> {
    match processes::state(process) {
        Some('T' | 't') => Err("it is stopped by a signal or a debugger".into()),
        Some('D') => Err("it waits for its storage".into()),
        _ if !processes::has_open(process, PIPE) => Err("it does not have nfsd's pipe open".into()),
        _ => Ok(()),
    }
}

/// Whether a daemon that is called by RPC answers a NULL call at the port that rpcbind has.
pub(super) async fn answers(daemon: Daemon) -> Result<(), String> {
    let Some((program, version)) = daemon.rpc() else {
        return Err("it has no RPC program".into());
    };
    let found = Registered::look_up(ANSWER).await;
    let found = found.map_err(|error| chain(&error))?;
    let Some(port) = found.port(program, version, Transport::Tcp, false) else {
        return Err("it is not registered with rpcbind".into());
    };
    let peer = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let called = alive::call_null(peer, Transport::Tcp, program, version, ANSWER).await;
    called.map_err(|error| chain(&error))
}

fn path() -> PathBuf {
    Path::new(OWN).join(REGISTERED)
}

/// Empty if it was never stored.
fn remembered() -> Vec<Registration> {
    let read = files::read(&path(), LIMIT).ok();
    let all = read.and_then(|text| serde_json::from_slice(&text).ok());
    all.unwrap_or_default()
}

fn remember(all: &[Registration]) -> Result<(), ServerError> {
    let mut all: Vec<&Registration> = all.iter().filter(|one| !one.is_rpcbinds()).collect();
    all.sort_unstable();
    let path = path();
    let text =
        serde_json::to_vec(&all).map_err(|error| ServerError::io("write", &path)(error.into()))?;
    if files::read(&path, LIMIT).is_ok_and(|last| last == text) {
        return Ok(());
    }
    files::write_whole(&path, &text, files::PRIVATE).map_err(ServerError::io("write", &path))
}

/// Whether rpcbind has an entry of the same program, version and netid: a daemon that was started again
/// has another address.
fn is_among(one: &Registration, all: &[Registration]) -> bool {
    let is_same = |other: &Registration| {
        (other.program, other.version, &other.netid) == (one.program, one.version, &one.netid)
    };
    all.iter().any(is_same)
}

/// Registers again what rpcbind has forgotten. Returns how many entries.
///
/// # Errors
/// If rpcbind does not take one of them.
pub fn register(forgotten: &[Registration]) -> Result<usize, ServerError> {
    for one in forgotten {
        let socket = Path::new(RPCBIND_SOCKET);
        one.set(socket, ANSWER)
            .map_err(ServerError::io("register a service again through", socket))?;
    }
    Ok(forgotten.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_at_another_address_is_not_forgotten() {
        let entry = |program, netid: &str, address: &str| Registration {
            program,
            version: 3,
            netid: netid.into(),
            address: address.into(),
        };
        let now = [entry(100_005, "tcp", "0.0.0.0.8.1")];
        assert!(is_among(&entry(100_005, "tcp", "0.0.0.0.9.9"), &now));
        assert!(!is_among(&entry(100_005, "tcp6", "::.8.1"), &now));
        assert!(!is_among(&entry(100_003, "tcp", "0.0.0.0.8.1"), &now));
    }
}
