//! The fence: all lock traffic of a VIP is dropped, not refused, before it reaches lockd,
//! so that clients retry at the new node. Only nlmfo's own calls pass.

use std::net::IpAddr;
use std::time::Duration;

use nlmfo_common::Addr;
use nlmfo_common::gate::Window;

use super::gate::Gate;
use super::lock::{ProcessLock, TIMEOUT};
use super::window::{self, after, now};
use super::{GraceError, keeper, leftovers};
use crate::causes::chain;
use crate::runtime;

/// The fences of a command. Dropping it removes those that the command has raised, unless
/// [`Fences::keep`] was called.
#[derive(Debug, Default)]
pub struct Fences {
    vips: Vec<IpAddr>,
    /// Fences that an earlier run raised.
    earlier: Vec<IpAddr>,
    is_kept: bool,
}

impl Fences {
    /// From now on locks may be released: the fences stay until their time is over.
    pub fn keep(&mut self) {
        self.is_kept = true;
    }

    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// The VIPs whose fences remain after the drop.
    pub fn staying(&self) -> &[IpAddr] {
        match self.is_kept {
            true => &self.vips,
            false => &self.earlier,
        }
    }

    fn raised(&self) -> Vec<IpAddr> {
        let vips = self.vips.iter().copied();
        vips.filter(|vip| !self.earlier.contains(vip)).collect()
    }
}

impl Drop for Fences {
    fn drop(&mut self) {
        let raised = self.raised();
        if self.is_kept || raised.is_empty() {
            return;
        }
        let lowering = runtime::finish(move || async move {
            lower(&raised).await?;
            leftovers::finish_if_over().await
        });
        let error = match lowering {
            Ok(Ok(())) => return,
            Ok(Err(error)) => chain(&error),
            Err(error) => error.to_string(),
        };
        tracing::error!(
            "the fence could not be removed and remains until its time is over: {error}"
        );
    }
}

/// Fences the VIPs for at most that long. Calls that reached lockd earlier may not be answered
/// yet ([`pass_queue`](crate::observe::lockd_queue::pass_queue)). The keeper removes a fence when its VIP
/// leaves the node. Waits up to `max_wait` for another run that changes the gate.
pub async fn raise(
    vips: &[IpAddr],
    lasting: Duration,
    max_wait: Duration,
) -> Result<Fences, GraceError> {
    // Dropped after the lock, since it takes the lock.
    let mut fences = Fences::default();
    {
        let _lock = ProcessLock::Gate.take(max_wait).await?;
        keeper::spawn()?;
        let mut gate = Gate::load_or_take_over().await?;
        gate.cover_all().await?;
        fences.earlier = gate.fenced()?;
        fences.earlier.retain(|vip| vips.contains(vip));
        fences.vips = vips.to_vec();
        gate.fence(vips, after(now(), lasting))?;
    }
    Ok(fences)
}

/// Removes the VIPs' fences.
pub async fn lower(vips: &[IpAddr]) -> Result<(), GraceError> {
    let _lock = ProcessLock::Gate.take(TIMEOUT).await?;
    match Gate::in_force()? {
        Some(mut gate) => gate.fence(vips, 0),
        None => Ok(()),
    }
}

impl Gate {
    /// Fences until that moment.
    pub(super) fn fence(&mut self, vips: &[IpAddr], until: u64) -> Result<(), GraceError> {
        self.change(vips, until, window::fenced)
    }

    /// Replaces each VIP's window by the result of `changed` for it and that moment.
    pub(super) fn change(
        &mut self,
        vips: &[IpAddr],
        until: u64,
        changed: fn(Window, u64) -> Window,
    ) -> Result<(), GraceError> {
        // The gate reads packets only until the latest end, so a later end is written first.
        let mut gate = self.maps.gate()?;
        gate.until = gate.until.max(until);
        self.maps.set_gate(gate)?;
        for vip in vips.iter().copied().map(Addr::from) {
            let before = self.maps.window(vip)?.unwrap_or_default();
            self.maps.set_window(vip, changed(before, until))?;
        }
        self.settle()
    }

    /// Every window, open or not, with the fence before it.
    pub(super) fn windows(&self) -> Result<Vec<(IpAddr, Window)>, GraceError> {
        let windows = self.maps.windows()?.into_iter();
        Ok(windows.map(|(vip, window)| (vip.ip(), window)).collect())
    }

    /// The VIPs that are fenced now.
    pub(crate) fn fenced(&self) -> Result<Vec<IpAddr>, GraceError> {
        self.now_until(|window| window.fenced_until)
    }

    /// The VIPs for which this moment is still to come.
    pub(super) fn now_until(&self, until: fn(&Window) -> u64) -> Result<Vec<IpAddr>, GraceError> {
        let now = now();
        let windows = self.windows()?.into_iter();
        Ok(windows
            .filter(|(_, window)| until(window) > now)
            .map(|(vip, _)| vip)
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_this_command_raised_is_taken_away() {
        let [first, second]: [IpAddr; 2] = ["10.77.0.1", "fd77::1"].map(|ip| ip.parse().unwrap());
        let mut fences = Fences {
            vips: vec![first, second],
            earlier: vec![second],
            is_kept: false,
        };
        assert_eq!(fences.raised(), [first]);
        assert_eq!(fences.staying(), [second]);
        fences.keep();
        assert_eq!(fences.staying(), [first, second]);
    }
}
