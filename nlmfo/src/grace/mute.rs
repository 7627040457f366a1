//! Muting: packets to the NFS server's ports are dropped while nothing listens there, instead of
//! refused. A Linux client doubles its wait after each refusal, and a lost packet is soon sent again.
//!
//! A server that listens again is heard at once, whoever starts it: muting it too long, or
//! while it runs, changes nothing.

use std::net::IpAddr;
use std::time::Duration;

use nlmfo_common::Addr;

use super::GraceError;
use super::gate::Gate;
use super::lock::{ProcessLock, TIMEOUT};
use super::window::{self, after, now};

/// Mutes the VIPs for at most that long: the ports given, with whether they are TCP's, of which
/// lockd's are left out. The gate must be in force, as after [`fence::raise`](super::fence::raise); its keeper
/// ends this for a VIP that leaves the node.
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

/// Ends it.
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
        // As for a fence.
        let mut gate = self.maps.gate()?;
        gate.until = gate.until.max(until);
        self.maps.set_gate(gate)?;
        for vip in vips.iter().copied().map(Addr::from) {
            let before = self.maps.window(vip)?.unwrap_or_default();
            self.maps.set_window(vip, window::muted(before, until))?;
        }
        self.settle()
    }

    /// The VIPs that are muted now.
    pub(super) fn muted(&self) -> Result<Vec<IpAddr>, GraceError> {
        let windows = self.maps.windows()?;
        let now = now();
        Ok((windows.into_iter())
            .filter(|(_, window)| window.muted_until > now)
            .map(|(vip, _)| vip.ip())
            .collect())
    }
}
