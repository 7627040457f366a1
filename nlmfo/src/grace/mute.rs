//! Muting: packets to the NFS server's ports are dropped while nothing listens there, instead of
//! refused. A Linux client doubles its wait after each refusal, and a lost packet is soon sent again.
//!
//! Once a server listens again, clients reach it at once, whoever started it: muting for too long, or
//! while the server runs, changes nothing.

use std::net::IpAddr;
use std::time::Duration;

use super::GraceError;
use super::gate::Gate;
use super::lock::{ProcessLock, TIMEOUT};
use super::window::{self, after, now};

/// Mutes these ports of the VIPs for at most that long; `true` marks a port of TCP. Ports of lockd are
/// never muted. The gate must be in force, as after [`fence::raise`](super::fence::raise); its keeper ends
/// this for a VIP that leaves the node.
pub async fn raise(
    vips: &[IpAddr],
    ports: &[(bool, u16)],
    lasting: Duration,
) -> Result<(), GraceError> {
    let _lock = ProcessLock::Gate.take(TIMEOUT).await?;
    let Some(mut gate) = Gate::in_force()? else {
        return Ok(());
    };
    for &(tcp, port) in ports {
        gate.maps.add_muted(tcp, port)?;
    }
    gate.mute(vips, after(now(), lasting))
}

/// Ends the muting.
pub async fn lower(vips: &[IpAddr]) -> Result<(), GraceError> {
    let _lock = ProcessLock::Gate.take(TIMEOUT).await?;
    match Gate::in_force()? {
        Some(mut gate) => gate.mute(vips, 0),
        None => Ok(()),
    }
}

impl Gate {
    /// Mutes until that moment.
    pub(super) fn mute(&mut self, vips: &[IpAddr], until: u64) -> Result<(), GraceError> {
        self.change(vips, until, window::muted)
    }

    /// The VIPs that are muted now.
    pub(super) fn muted(&self) -> Result<Vec<IpAddr>, GraceError> {
        self.now_until(|window| window.muted_until)
    }
}
