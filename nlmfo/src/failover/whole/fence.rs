//! Drops lock calls while the server stops. lockd releases everything on its way down and still answers
//! for a moment after that (`lockd_down_net`, fs/lockd/svc.c, 6.1 to 7.3): without a fence, it would
//! grant the lock of one client to another and keep that new lock.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tracing::warn;

use super::server::ServerError;
use crate::causes::chain;
use crate::grace::fence::{self, Fences};
use crate::grace::{leftovers, mute};
use crate::kernel::netns;
use crate::kernel::nfsd::Nfsd;
use crate::observe::lockd_queue::pass_queue;

/// Maximum time for a stop and a start.
pub const LASTING: Duration = Duration::from_mins(2);

/// The same if another program stops and starts the server.
pub const LASTING_ALONE: Duration = Duration::from_secs(20);

/// Maximum time for which packets to the stopped server are dropped instead of refused. By then the
/// server runs again, or its addresses are on another node.
const MUTED: Duration = Duration::from_mins(5);

/// Maximum time to wait for other runs that change the gate, and for lockd.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// Fences every address of this node, and waits until lockd has answered what reached it before.
/// Lock calls over the loopback device are not fenced. From the stop on, clients are not refused.
pub async fn raise(lasting: Duration) -> Result<Fences, String> {
    let vips = addresses().map_err(|error| error.to_string())?;
    let raised = fence::raise(&vips, lasting, MAX_WAIT).await;
    let fences = raised.map_err(|error| chain(&error))?;
    if let Err(error) = mute(&vips).await {
        warn!(error, "clients are refused while the server does not run");
    }
    (pass_queue(MAX_WAIT).await).map_err(|error| chain(&error))?;
    Ok(fences)
}

async fn mute(vips: &[IpAddr]) -> Result<(), String> {
    let ports = Nfsd::mounted().and_then(|nfsd| nfsd.ports());
    let ports = listened(&ports.map_err(|error| chain(&error))?);
    let muted = mute::raise(vips, &ports, MUTED).await;
    muted.map_err(|error| chain(&error))
}

/// nfsd's ports, with whether they are TCP's.
fn listened(ports: &BTreeSet<String>) -> Vec<(bool, u16)> {
    let one = |line: &String| {
        let (transport, port) = line.split_once(' ')?;
        let port = port.parse().ok()?;
        match transport {
            "tcp" => Some((true, port)),
            "udp" => Some((false, port)),
            _ => None,
        }
    };
    ports.iter().filter_map(one).collect()
}

/// The server runs again: packets that nothing listens for are refused.
pub async fn unmute() -> Result<(), ServerError> {
    let failed = |error: String| ServerError::Other(format!("the VIPs are still muted: {error}"));
    let vips = addresses().map_err(|error| failed(error.to_string()))?;
    (mute::lower(&vips).await).map_err(|error| failed(chain(&error)))
}

/// Removes the fences of this run and of an interrupted one, but not the gate.
pub async fn lower() -> Result<(), ServerError> {
    let failed = |error: String| ServerError::Other(format!("the fence remains: {error}"));
    let vips = addresses().map_err(|error| failed(error.to_string()))?;
    (fence::lower(&vips).await).map_err(|error| failed(chain(&error)))
}

/// Removes the gate if nothing needs it any more.
pub async fn finish() -> Result<(), ServerError> {
    let finished = leftovers::finish_if_over().await;
    finished.map_err(|error| ServerError::Other(format!("the gate remains: {}", chain(&error))))
}

/// Ends the fences, the muting and the gate.
pub async fn withdraw() -> Result<(), ServerError> {
    lower().await?;
    unmute().await?;
    finish().await
}

fn addresses() -> std::io::Result<Vec<IpAddr>> {
    Ok(netns::addresses()?.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_of_tcp_and_udp_are_muted() {
        let lines = ["rdma 20049", "tcp 2049", "udp 2049", "tcp x", ""];
        let ports = lines.map(str::to_owned).into();
        assert_eq!(listened(&ports), [(true, 2049), (false, 2049)]);
    }
}
