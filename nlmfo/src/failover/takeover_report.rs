//! What a takeover did, and what was seen of it: one value for JSON and for text.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use crate::exit::Exit;
use crate::grace::gate::Uncovered;
use crate::grace::report::WindowReport;
use crate::notify::report::NotifyReport;
use crate::observe::describe::LockLine;

/// `nlmfo failover --phase takeover --json`: one object, `schema` "nlmfo.takeover/1".
/// Addresses as text, ranges in bytes with both ends included, times in milliseconds.
#[derive(Debug, Serialize)]
pub struct TakeoverReport {
    pub schema: &'static str,
    pub node: String,
    pub kernel: String,
    pub vips: Vec<VipTakeover>,
    /// Requests that waited through the VIPs before the window, and wait no more.
    pub waiters_cancelled: usize,
    /// Waiting requests that could not be cancelled, in words.
    pub still_waiting: Vec<String>,
    /// Whether grace was the gate's, which is audited; else the kernel's own.
    pub by_gate: bool,
    /// nfsd was stopped meanwhile, and what had been reclaimed was lost with it.
    pub nfsd_stopped: bool,
    /// Devices whose packets the gate does not see.
    pub uncovered: Vec<Uncovered>,
    pub took_ms: f64,
}

/// One VIP's part.
#[derive(Debug, Serialize)]
pub struct VipTakeover {
    pub vip: IpAddr,
    /// Whether it is an address of this node at the end.
    pub is_here: bool,
    /// Locks that its clients held on the other node; null if nobody said.
    pub expected: Option<usize>,
    /// Those of them that are not back, as they were recorded there.
    pub missing: Vec<LockLine>,
    /// What is held through it now.
    pub held: Vec<LockLine>,
    /// Whether its clients were told to reclaim; null if that was not our part.
    pub told: Option<Told>,
    /// Why the client book is not, or not wholly, what this takeover could make of it.
    pub book_error: Option<String>,
    /// When the last expected lock was back, since the start.
    pub all_back_ms: Option<f64>,
    /// Its grace as the gate and lockd counted it; null if it had been ended and taken
    /// away meanwhile.
    pub window: Option<WindowReport>,
}

/// How the telling of the clients went.
#[derive(Debug, Serialize)]
pub struct Told {
    /// Everybody knows, as far as can be known.
    pub done: bool,
    /// Why nobody was told.
    pub error: Option<String>,
    /// Why the state number is the clock's, and was not claimed in the state directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unclaimed: Option<String>,
    /// Client by client; null if a program did it.
    pub notify: Option<NotifyReport>,
}

impl Told {
    pub fn done() -> Self {
        Told {
            done: true,
            error: None,
            unclaimed: None,
            notify: None,
        }
    }

    pub fn failed(error: String) -> Self {
        Told {
            done: false,
            error: Some(error),
            unclaimed: None,
            notify: None,
        }
    }

    pub fn by_us(report: NotifyReport) -> Self {
        Told {
            done: report.is_complete(),
            error: None,
            unclaimed: None,
            notify: Some(report),
        }
    }
}

impl TakeoverReport {
    pub const SCHEMA: &str = "nlmfo.takeover/1";

    /// Not confirmed without a clean audit; incomplete if locks are missing, if the next
    /// takeover would not know the clients, or, where nobody said what is to come back, if
    /// clients were not told. Else whoever had locks
    /// has them, and a client that is in the book from years ago is no failure.
    pub fn exit(&self) -> Exit {
        let is_audited = |vip: &VipTakeover| {
            let window = vip.window.as_ref();
            window.is_some_and(|window| window.verdict.is_good())
        };
        let is_complete = |vip: &VipTakeover| {
            let is_told = |told: &Told| {
                let all_back = vip.expected.is_some() && told.error.is_none();
                told.unclaimed.is_none() && (told.done || all_back)
            };
            vip.is_here
                && vip.missing.is_empty()
                && vip.book_error.is_none()
                && vip.told.as_ref().is_none_or(is_told)
        };
        let is_covered = !self.uncovered.iter().any(|uncovered| uncovered.failed);
        let is_held = !self.by_gate || self.vips.iter().all(is_audited);
        let is_confirmed = is_held && is_covered && self.still_waiting.is_empty();
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
                    "✗ {vip}: NOT CONFIRMED: its grace was taken away by somebody else"
                )?;
            }
            vip.fmt(f)?;
        }
        if self.nfsd_stopped {
            writeln!(
                f,
                "✗ NOT CONFIRMED: nfsd was stopped during the takeover, and what had been \
                 reclaimed is gone; start it and run the takeover again"
            )?;
        }
        if self.waiters_cancelled > 0 {
            writeln!(
                f,
                "  {} waiting requests were cancelled before; their clients ask again",
                self.waiters_cancelled
            )?;
        }
        for waiting in &self.still_waiting {
            writeln!(f, "  ✗ {waiting}: it may have been granted in the window")?;
        }
        for uncovered in &self.uncovered {
            let (name, reason) = (&uncovered.device.name, &uncovered.reason);
            writeln!(
                f,
                "  note: not held to it: what comes in at {name}: {reason}"
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
        if !self.is_here {
            writeln!(f, "  ✗ it is no address of this node: bring it up here")?;
        }
        if let Some(error) = self.told.as_ref().and_then(|told| told.error.as_ref()) {
            writeln!(f, "  ✗ its clients were not told to reclaim: {error}")?;
        }
        if let Some(error) = self.told.as_ref().and_then(|told| told.unclaimed.as_ref()) {
            writeln!(f, "  ! the state number is the time of day: {error}")?;
        }
        if let Some(error) = &self.book_error {
            writeln!(f, "  the client book is not up to date: {error}")?;
        }
        if let Some(report) = self.told.as_ref().and_then(|told| told.notify.as_ref()) {
            report.summary(f)?;
            for client in report.not_told() {
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
        match (self.expected, self.all_back_ms) {
            (Some(expected), Some(at)) if self.missing.is_empty() => {
                writeln!(f, "✓ {vip}: all {expected} locks are back after {at:.0} ms")
            }
            (Some(expected), _) => writeln!(
                f,
                "✗ {vip}: {} of {expected} locks are not back",
                self.missing.len()
            ),
            (None, _) => writeln!(f, "- {vip}: {} locks are held now", self.held.len()),
        }
    }
}
