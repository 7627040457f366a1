//! The fence: nothing of a VIP's lock traffic reaches lockd, dropped and not refused,
//! so that clients try again at the node that takes over. Only nlmfo's own calls pass.

use std::net::IpAddr;
use std::time::Duration;

use nlmfo_common::Addr;

use super::gate::{Coverage, Gate, pass_lockds_queue};
use super::lock::{Lock, TIMEOUT};
use super::window::{self, after, now};
use super::{GraceError, keeper};

/// Fences the VIPs off for that long at most. On return lockd has answered what had
/// reached it before; the keeper takes a fence away when its VIP leaves the node. Waits up to
/// `patience` for another run that changes the gate.
pub async fn raise(
    vips: &[IpAddr],
    lasting: Duration,
    patience: Duration,
) -> Result<Coverage, GraceError> {
    let coverage = {
        let _lock = Lock::Gate.take(patience).await?;
        let (mut gate, _) = Gate::load_or_take_over().await?;
        let coverage = gate.cover_all().await?;
        gate.fence(vips, after(now(), lasting))?;
        coverage
    };
    pass_lockds_queue().await?;
    keeper::spawn()?;
    Ok(coverage)
}

/// Takes the VIPs' fences away.
pub async fn lower(vips: &[IpAddr]) -> Result<(), GraceError> {
    let _lock = Lock::Gate.take(TIMEOUT).await?;
    match Gate::in_force()? {
        Some(mut gate) => gate.fence(vips, 0),
        None => Ok(()),
    }
}

impl Gate {
    /// Fences until that moment.
    pub(super) fn fence(&mut self, vips: &[IpAddr], until: u64) -> Result<(), GraceError> {
        // Up to the latest end packets are read at all: it goes first when it grows.
        let mut gate = self.maps.gate()?;
        gate.until = gate.until.max(until);
        self.maps.set_gate(gate)?;
        for vip in vips.iter().copied().map(Addr::from) {
            let before = self.maps.window(vip)?.unwrap_or_default();
            self.maps.set_window(vip, window::fenced(before, until))?;
        }
        self.settle()
    }

    /// The VIPs that are fenced off now.
    pub fn fenced(&self) -> Result<Vec<IpAddr>, GraceError> {
        let windows = self.maps.windows()?;
        let now = now();
        Ok((windows.into_iter())
            .filter(|(_, window)| window.fenced_until > now)
            .map(|(vip, _)| vip.ip())
            .collect())
    }
}
