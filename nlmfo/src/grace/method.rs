//! Opens and ends windows: the order of steps, and the method that this kernel offers.

use std::net::IpAddr;
use std::time::Duration;

use nlmfo_common::Addr;
use nlmfo_common::nlm_call::Fsid;

use super::devices::Coverage;
use super::gate::Gate;
use super::lock::{ProcessLock, TIMEOUT};
use super::window::{self, after, now};
use super::{GraceError, keeper};
use crate::kernel::nfsd::{Control, Nfsd};
use crate::kernel::preflight::Facts;
use crate::kernel::{lockd, netns};
use crate::observe::lockd_ports::LockdPorts;
use crate::observe::lockd_queue::pass_queue;

/// How a VIP gets its grace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    /// The file of kernels patched with the RFC: per-address grace by the kernel, as long as its
    /// grace period.
    RfcFile,
    Gate,
}

impl Method {
    /// The kernel's own file if it has one.
    pub fn choose(facts: &Facts) -> Self {
        match facts.rfc_grace.is_available() {
            true => Method::RfcFile,
            false => Method::Gate,
        }
    }
}

/// Starts the kernel's own grace for each address, on kernels with the RFC's file. The kernel
/// ends it.
pub(crate) fn start_by_rfc_file(vips: &[IpAddr]) -> Result<(), GraceError> {
    let nfsd = Nfsd::mounted()?;
    for vip in vips {
        nfsd.write_address(Control::NlmSetIpGrace, *vip)?;
    }
    Ok(())
}

/// Maximum time for lockd to answer earlier calls. It takes microseconds, unless lockd waits for
/// another service.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(30);

/// Windows to open or to give a new deadline.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The VIPs, one window each.
    pub vips: Vec<IpAddr>,
    /// From the opening on, and again from the start of the audit.
    pub lasting: Duration,
    /// New locks on these filesystems are refused through every address.
    pub scope: Vec<Fsid>,
    /// The window may open before lockd listens: the gate follows lockd.
    pub lockd_later: bool,
}

/// Opens windows: from the return on, new locks through these VIPs are refused on every covered device.
/// Between this and [`confirm`], the caller must cancel the VIPs' waiters: lockd would grant them
/// without another call.
///
/// # Errors
/// If lockd does not listen (unless [`Plan::lockd_later`]), or the gate cannot be loaded. What
/// was opened before stays open until its time is over.
pub async fn begin(plan: &Plan) -> Result<Coverage, GraceError> {
    // The gate follows a lockd that starts later. But a window on a node where lockd does not listen
    // would look as if it worked.
    let serves = match LockdPorts::look_up() {
        Ok(ports) => !ports.is_empty(),
        Err(error) if !plan.lockd_later => return Err(error.into()),
        Err(_) => true,
    };
    if !plan.lockd_later && !serves {
        return Err(GraceError::NotListening);
    }
    let _lock = ProcessLock::Gate.take(plan.lasting.max(TIMEOUT)).await?;
    // Before anything is loaded: if this process is killed, the keeper cleans up.
    keeper::spawn()?;
    let mut gate = Gate::load_or_take_over().await?;
    // First the gate: it has no effect yet, and no call can bypass it later.
    let coverage = gate.cover_all().await?;
    gate.open(plan, serves)?;
    Ok(coverage)
}

/// The second half: waits until lockd has answered what had reached it before, and audits its answers
/// from then on. The windows' time counts from here. Returns when they end, by the clock of
/// [`window::now`].
pub(crate) async fn confirm(plan: &Plan) -> Result<u64, GraceError> {
    pass_queue(QUEUE_TIMEOUT).await?;
    let _lock = ProcessLock::Gate.take(plan.lasting.max(TIMEOUT)).await?;
    let too_short = || GraceError::EndedEarly(plan.lasting);
    let mut gate = Gate::in_force()?.ok_or_else(too_short)?;
    gate.start_audit(plan)?.ok_or_else(too_short)
}

/// Whether a lockd that serves could have granted new locks through the address until now.
pub(crate) fn could_be_granted(vip: IpAddr) -> bool {
    // The kernel's own grace began with lockd.
    let is_refused = lockd::in_grace().is_ok_and(|is_in_grace| is_in_grace);
    let is_down = netns::has_address(vip).is_ok_and(|is_up| !is_up);
    !is_refused && !is_down
}

impl Gate {
    /// `serves` is whether lockd may have granted locks until now.
    fn open(&mut self, plan: &Plan, serves: bool) -> Result<(), GraceError> {
        let started = now();
        let until = after(started, plan.lasting);
        let mut gate = self.maps.gate()?;
        if self.ends()? <= started {
            // The counts of earlier windows are not needed.
            self.maps.forget_violations()?;
            self.maps.forget_scopes()?;
            for (vip, _) in self.maps.windows()? {
                self.maps.forget_window(vip)?;
            }
            for vip in self.maps.counted()? {
                self.maps.forget_counts(vip)?;
            }
        }
        for filesystem in &plan.scope {
            self.maps.add_scope(*filesystem)?;
        }
        if !plan.scope.is_empty() {
            if gate.scope_until <= started {
                gate.scope_opened = started;
            }
            gate.scope_until = gate.scope_until.max(until);
        }
        // Up to here packets are let through unread: a window of which the gate knew
        // before would begin with connections that it had not seen.
        gate.until = gate.until.max(until);
        self.maps.set_gate(gate)?;
        for &address in &plan.vips {
            let vip = Addr::from(address);
            let before = self.maps.window(vip)?;
            let begun = now();
            let is_new = !before.is_some_and(|window| window::is_open(&window, begun));
            if is_new {
                self.maps.forget_counts(vip)?;
            }
            let window = window::opened(before, begun, until);
            self.maps.set_window(vip, window)?;
            // Not earlier: the address may come up in the meantime.
            if is_new && !(serves && could_be_granted(address)) {
                self.maps.set_window(vip, window::in_time(window))?;
            }
        }
        self.settle()
    }

    /// The end of the windows; `None` if one of them has ended already.
    fn start_audit(&mut self, plan: &Plan) -> Result<Option<u64>, GraceError> {
        let stands = now();
        let until = after(stands, plan.lasting);
        let mut windows = Vec::new();
        for vip in plan.vips.iter().copied().map(Addr::from) {
            match self.maps.window(vip)? {
                Some(window) if window::is_open(&window, stands) => windows.push((vip, window)),
                _ => return Ok(None),
            }
        }
        let mut gate = self.maps.gate()?;
        gate.until = gate.until.max(until);
        if !plan.scope.is_empty() {
            gate.scope_until = gate.scope_until.max(until);
        }
        self.maps.set_gate(gate)?;
        for (vip, window) in windows {
            let window = window::opened(Some(window), stands, until);
            self.maps.set_window(vip, window::audited(window, stands))?;
        }
        self.settle()?;
        Ok(Some(until))
    }

    /// Ends the windows of these VIPs. Returns the VIPs that had no open window.
    pub(crate) fn end(&mut self, vips: &[IpAddr]) -> Result<Vec<IpAddr>, GraceError> {
        let mut not_open = Vec::new();
        for &vip in vips {
            let key = Addr::from(vip);
            match self.maps.window(key)? {
                Some(window) if window::is_open(&window, now()) => {
                    self.maps.set_window(key, window::ended(window, now()))?;
                }
                _ => not_open.push(vip),
            }
        }
        let all = self.maps.windows()?;
        if !all.iter().any(|(_, window)| window::is_open(window, now())) {
            // The scope ended with the windows.
            let mut gate = self.maps.gate()?;
            gate.scope_until = gate.scope_until.min(now());
            self.maps.set_gate(gate)?;
        }
        self.settle()?;
        Ok(not_open)
    }

    /// When the gate is no longer needed.
    pub(crate) fn ends(&self) -> Result<u64, GraceError> {
        let windows = self.maps.windows()?;
        let gate = self.maps.gate()?;
        Ok(window::latest_end(
            &gate,
            windows.iter().map(|(_, window)| window),
        ))
    }

    /// Makes the gate read packets for as long as any window needs it, and no longer.
    pub(super) fn settle(&mut self) -> Result<(), GraceError> {
        let gate = nlmfo_common::gate::Gate {
            until: self.ends()?,
            ..self.maps.gate()?
        };
        self.maps.set_gate(gate)
    }
}
