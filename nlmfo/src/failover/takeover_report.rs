//! The report of a takeover, as JSON and as text.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::exit::Exit;
use crate::grace::devices::Uncovered;
use crate::grace::report::WindowReport;
use crate::notify::report::NotifyReport;
use crate::observe::describe::LockLine;

/// `nlmfo failover --phase takeover --json`: one object, `schema` "nlmfo.takeover/1".
/// Addresses are text, ranges are in bytes with both ends included, times in milliseconds.
#[derive(Debug, Serialize)]
pub struct TakeoverReport {
    pub schema: &'static str,
    pub node: String,
    pub kernel: String,
    pub vips: Vec<VipTakeover>,
    /// Waiters of the VIPs that were cancelled before the window opened.
    pub waiters_cancelled: usize,
    /// Waiters that could not be cancelled, as text.
    pub still_waiting: Vec<String>,
    /// Whether the gate provided grace, which is audited; otherwise the kernel did.
    pub by_gate: bool,
    /// nfsd was stopped during the takeover, and all reclaimed locks were lost.
    pub nfsd_stopped: bool,
    /// Network devices whose packets the gate does not see.
    pub uncovered: Vec<Uncovered>,
    pub took_ms: f64,
}

/// The takeover of one VIP.
#[derive(Debug, Serialize)]
pub struct VipTakeover {
    pub vip: IpAddr,
    /// Whether the VIP is an address of this node at the end.
    pub address_up: bool,
    /// Locks that its clients held on the old node; null without a release record.
    pub expected: Option<usize>,
    /// Those of them that were not reclaimed, as in the release record.
    pub missing: Vec<LockLine>,
    /// Those that their clients gave up (UNLOCK) during the takeover, as in the release record.
    pub given_up: Vec<LockLine>,
    /// Locks that are held through it now.
    pub held: Vec<LockLine>,
    /// Whether its clients were notified; null with `--no-notify`.
    pub notified: Option<Notified>,
    /// Why the client book could not be updated.
    pub book_error: Option<String>,
    /// When the last expected lock was reclaimed, counted from the start.
    pub reclaimed_after_ms: Option<f64>,
    /// lockd served the VIP before its grace began, without a fence, while expected locks were not
    /// held or without a release record: other clients may have been granted them.
    pub late: bool,
    /// The grace window, as the gate and lockd counted it; null if another process removed it.
    pub window: Option<WindowReport>,
}

/// The result of notifying the clients of a VIP.
#[derive(Debug, Serialize)]
pub struct Notified {
    /// Every client was notified.
    pub done: bool,
    /// Why no client was notified.
    pub error: Option<String>,
    /// Why the state number was made from the clock instead of claimed in the state directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state_number_error: Option<String>,
    /// The result per client; null if a program notified them.
    pub notify: Option<NotifyReport>,
}

impl Notified {
    pub fn done() -> Self {
        Notified {
            done: true,
            error: None,
            state_number_error: None,
            notify: None,
        }
    }

    pub fn failed(error: String) -> Self {
        Notified {
            done: false,
            error: Some(error),
            state_number_error: None,
            notify: None,
        }
    }

    pub fn by_us(report: NotifyReport) -> Self {
        Notified {
            done: report.is_complete(),
            error: None,
            state_number_error: None,
            notify: Some(report),
        }
    }
}

impl TakeoverReport {
    pub const SCHEMA: &str = "nlmfo.takeover/1";

    /// Not confirmed without a clean audit, or if grace began too late. Incomplete if locks are missing, if the next
    /// takeover would not know the clients, or, without a release record, if clients were
    /// not notified. With a record, a client that only an old book names is no failure.
    pub fn exit(&self) -> Exit {
        let is_audited = |vip: &VipTakeover| {
            let window = vip.window.as_ref();
            window.is_some_and(|window| window.verdict.is_good())
        };
        let is_complete = |vip: &VipTakeover| {
            let is_notified = |notified: &Notified| {
                let all_back = vip.expected.is_some() && notified.error.is_none();
                notified.state_number_error.is_none() && (notified.done || all_back)
            };
            vip.address_up
                && vip.missing.is_empty()
                && vip.book_error.is_none()
                && vip.notified.as_ref().is_none_or(is_notified)
        };
        let is_covered = !self.uncovered.iter().any(|uncovered| uncovered.failed);
        let is_held = !self.by_gate || self.vips.iter().all(is_audited);
        let is_guarded = !self.vips.iter().any(|vip| vip.late);
        let is_confirmed = is_held && is_covered && is_guarded && self.still_waiting.is_empty();
        if !is_confirmed || self.nfsd_stopped {
            Exit::NotConfirmed
        } else if !self.vips.iter().all(is_complete) {
            Exit::Incomplete
        } else {
            Exit::Done
        }
    }
}

impl fmt::Display for TakeoverReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for vip in &self.vips {
            if self.by_gate && vip.window.is_none() {
                let vip = vip.vip;
                writeln!(
                    f,
                    "✗ {vip}: NOT CONFIRMED: another process removed its grace window"
                )?;
            }
            vip.fmt(f)?;
        }
        if self.nfsd_stopped {
            writeln!(
                f,
                "✗ NOT CONFIRMED: nfsd was stopped during the takeover and all reclaimed locks are \
                 lost; start nfsd and run the takeover again"
            )?;
        }
        if self.waiters_cancelled > 0 {
            writeln!(
                f,
                "  {} waiters were cancelled before grace; their clients retry",
                self.waiters_cancelled
            )?;
        }
        for waiting in &self.still_waiting {
            writeln!(f, "  ✗ {waiting}: it may have been granted during grace")?;
        }
        for uncovered in &self.uncovered {
            let (name, reason) = (&uncovered.device.name, &uncovered.reason);
            writeln!(
                f,
                "  note: not covered by grace: packets that arrive on {name}: {reason}"
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for VipTakeover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let vip = self.vip;
        if let Some(window) = &self.window {
            window.fmt(f)?;
        }
        if self.late {
            writeln!(
                f,
                "✗ {vip}: NOT CONFIRMED: other clients may have been granted what its clients held; \
                 start grace before the address is up"
            )?;
        }
        if !self.address_up {
            writeln!(f, "  ✗ it is not an address of this node; bring it up here")?;
        }
        if let Some(error) = self
            .notified
            .as_ref()
            .and_then(|notified| notified.error.as_ref())
        {
            writeln!(f, "  ✗ its clients were not notified: {error}")?;
        }
        if let Some(error) = self
            .notified
            .as_ref()
            .and_then(|notified| notified.state_number_error.as_ref())
        {
            writeln!(f, "  ! the state number was made from the clock: {error}")?;
        }
        if let Some(error) = &self.book_error {
            writeln!(f, "  the client book is not up to date: {error}")?;
        }
        if let Some(report) = self
            .notified
            .as_ref()
            .and_then(|notified| notified.notify.as_ref())
        {
            report.summary(f)?;
            for client in report.not_notified() {
                client.fmt(f)?;
            }
        }
        for lock in &self.missing {
            writeln!(
                f,
                "  ! not reclaimed: {} ({}): {} lock {} of {}, svid {}",
                lock.host.client,
                lock.host.client_name,
                lock.mode,
                lock.range,
                lock.file,
                lock.svid
            )?;
        }
        if !self.given_up.is_empty() {
            writeln!(
                f,
                "  {} locks were given up by their clients meanwhile",
                self.given_up.len()
            )?;
        }
        match (self.expected, self.reclaimed_after_ms) {
            (Some(expected), Some(at)) if self.missing.is_empty() => {
                let reclaimed = expected.saturating_sub(self.given_up.len());
                writeln!(
                    f,
                    "✓ {vip}: all {reclaimed} locks reclaimed after {at:.0} ms"
                )
            }
            (Some(expected), _) => writeln!(
                f,
                "✗ {vip}: {} of {expected} locks not reclaimed",
                self.missing.len()
            ),
            (None, _) => writeln!(f, "- {vip}: {} locks held now", self.held.len()),
        }
    }
}
