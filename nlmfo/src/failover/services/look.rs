//! Checks the services, each within a deadline.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::Access;
use tokio::time::sleep;

use super::{Facts, Purpose, blockers, decide};
use crate::causes::chain;
use crate::kernel::preflight::{self, Check};
use crate::kernel::{exports, nfsd};
use crate::notify::state_dir::StateDir;
use crate::observe::host::Transport;
use crate::observe::lockd_ports::LockdPorts;
use crate::observe::lockd_queue;
use crate::rpc::client::{Client, Endpoint, Source};
use crate::rpc::message::{Credential, Procedure};
use crate::rpc::nsm;
use crate::rpc::portmap::Registered;

/// Maximum time for the answer to a null call. statd has one thread, and a callout or a name
/// server may delay it.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Time between two checks.
const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The kernel calls statd over TCP and IPv4 (`nsm_create`, fs/lockd/mon.c, 6.1 to 7.3).
const STATD: Procedure = Procedure {
    number: 0,
    name: "NULL",
    ..nsm::STATD
};

/// Checks once.
pub async fn facts(state: &StateDir) -> Facts {
    let nfsd = nfsd::Nfsd::mounted();
    let threads = nfsd.as_ref().ok().and_then(|nfsd| nfsd.threads().ok());
    let lockd = LockdPorts::look_up();
    let (lockd_answers, (rpcbind, statd)) =
        tokio::join!(lockd_queue::pass_queue(TIMEOUT), registered());
    Facts {
        serves_v3: (nfsd.as_ref().map_err(|error| chain(error)))
            .and_then(|nfsd| nfsd.serves_v3().map_err(|error| chain(&error))),
        nfsd: preflight::nfsd_state(&nfsd, threads),
        exports: (exports::exported())
            .map(|folders| folders.len())
            .map_err(|error| chain(&error)),
        lockd: lockd.map_err(|error| chain(&error)),
        lockd_answers: match lockd_answers {
            Ok(listens) => listens.then_some(Ok(())),
            Err(error) => Some(Err(chain(&error))),
        },
        rpcbind,
        statd,
        state_dir: writable(state.path()),
        callout: state.read_by_statd().map_err(|error| chain(&error)),
    }
}

/// Whether the registered statd answers; none if none is registered.
pub async fn statd() -> Option<Result<(), String>> {
    registered().await.1
}

/// Checks until nothing blocks, for up to `max_wait`. Returns the last findings.
pub async fn wait(state: &StateDir, purpose: &Purpose, max_wait: Duration) -> Vec<Check> {
    let until = Instant::now() + max_wait;
    loop {
        let checks = decide(&facts(state).await, purpose);
        if blockers(&checks).is_empty() || Instant::now() >= until {
            return checks;
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// What is registered with rpcbind, and whether the registered statd answers.
async fn registered() -> (Result<Registered, String>, Option<Result<(), String>>) {
    let registered = match Registered::look_up(TIMEOUT).await {
        Ok(registered) => registered,
        Err(error) => return (Err(chain(&error)), None),
    };
    let port = registered.port(STATD.program, STATD.version, Transport::Tcp, false);
    let answer = match port {
        Some(port) => Some(call_statd(port).await),
        None => None,
    };
    (Ok(registered), answer)
}

async fn call_statd(port: u16) -> Result<(), String> {
    let loopback = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let call = async {
        let mut client = Client::connect(Endpoint {
            peer: SocketAddr::new(loopback, port),
            transport: Transport::Tcp,
            source: Source::Any,
            credential: Credential::Null,
            deadline: TIMEOUT,
        })
        .await?;
        client.call(&STATD, &[]).await
    };
    call.await.map(drop).map_err(|error| chain(&error))
}

/// Writes nothing, since the directory may not be needed yet.
fn writable(folder: &Path) -> Result<(), String> {
    let existing = folder.ancestors().find(|folder| folder.exists());
    let folder = existing.unwrap_or(Path::new("/"));
    rustix::fs::access(folder, Access::WRITE_OK)
        .map_err(|error| format!("cannot write to {}: {error}", folder.display()))
}
