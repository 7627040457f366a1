//! The identity by which NFSv4 clients know the node's server (`eir_server_owner` and
//! `eir_server_scope` of `EXCHANGE_ID`): they reclaim only from a server with the same one. nfsd takes it
//! from the host name of the process that starts it, or from the netlink request, and no file shows it.
//! So nlmfo asks the server as a client does.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::warn;

use crate::causes::chain;
use crate::files::{self, LIMIT, PRIVATE};
use crate::kernel::netns;
use crate::kernel::nfsd::Nfsd;
use crate::notify::state_dir::{self, Readers, StateDir};
use crate::rpc::nfs4::{self, Identity};

const NFS_PORT: u16 = 2049;

/// Maximum time to wait for an answer through one address.
const ANSWER: Duration = Duration::from_secs(2);

/// Maximum time to wait for an answer through any of them.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// Asks the server that runs here. None if it serves NFSv3 and 4.0 only, whose clients do not ask.
///
/// # Errors
/// Why the server did not answer.
pub async fn of_server() -> Result<Option<Identity>, String> {
    let nfsd = Nfsd::mounted().map_err(|error| chain(&error))?;
    let versions = nfsd.versions().map_err(|error| chain(&error))?;
    let Some(minor) = [1, 2].into_iter().find(|&minor| versions.has_v4(minor)) else {
        return Ok(None);
    };
    let ports = nfsd.ports().map_err(|error| chain(&error))?;
    let ports = ports.iter().filter_map(|port| port.strip_prefix("tcp "));
    let port = ports.filter_map(|port| port.parse().ok()).min();
    let port = port.unwrap_or(NFS_PORT);
    let mut addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
    // The exports may name other clients only.
    addresses.extend(netns::addresses().into_iter().flatten());
    let until = Instant::now() + MAX_WAIT;
    let mut reason = String::new();
    for address in addresses {
        match nfs4::identity(address, port, minor, ANSWER).await {
            Ok(Some(identity)) => return Ok(Some(identity)),
            Ok(None) => reason = format!("{address}: it refuses EXCHANGE_ID"),
            Err(error) => reason = chain(&error),
        }
        if Instant::now() >= until {
            break;
        }
    }
    Err(reason)
}

/// Not one of the records, which are the JSON files of this directory.
fn path(state: &StateDir) -> PathBuf {
    state.path().join("restart/identity")
}

/// Keeps it for a start after a crash, here or on the node that the state directory moves to.
pub fn remember(state: &StateDir, identity: &Identity) {
    if remembered(state).as_ref() == Some(identity) {
        return;
    }
    let path = path(state);
    let written = state_dir::create(&state.path().join("restart"), Readers::Nobody)
        .and_then(|()| Ok(serde_json::to_vec(identity)?))
        .and_then(|json| files::write_whole(&path, &json, PRIVATE));
    if let Err(error) = written {
        warn!(%error, path = %path.display(), "the server's scope is not kept");
    }
}

/// The identity that was kept last. The server may have another scope by now.
pub fn remembered(state: &StateDir) -> Option<Identity> {
    let json = files::read(&path(state), LIMIT).ok()?;
    serde_json::from_slice(&json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_is_remembered() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path());
        assert_eq!(remembered(&state), None);
        for scope in ["a", "b"] {
            let identity = Identity {
                scope: scope.into(),
                owner: "owner".into(),
            };
            remember(&state, &identity);
            assert_eq!(remembered(&state), Some(identity));
        }
        std::fs::write(path(&state), "no JSON").unwrap();
        assert_eq!(remembered(&state), None);
    }
}
