//! Grace windows as text and as JSON.

use std::fmt;
use std::net::IpAddr;

use nlmfo_common::Addr;
use nlmfo_common::gate::{Audited, Gated, Violation, Window, violation};
use serde::{Deserialize, Serialize};

use super::GraceError;
use super::audit::{self, Verdict};
use super::gate::Gate;
use super::window;
use crate::foreign::{self, Shown};
use crate::kernel::path::PathFinder;
use crate::observe::table::{Mode, Range};
use crate::times::whole_milliseconds;

/// Which locks of an address a window covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reach {
    /// All of its locks: it is the VIP in grace.
    Vip,
    /// Locks on the filesystems of another VIP's scope.
    Filesystem,
}

/// The window of one address, open or ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowReport {
    pub vip: IpAddr,
    pub reach: Reach,
    pub open: bool,
    /// Milliseconds until it ends.
    pub left_ms: u64,
    /// Milliseconds from its beginning to its end.
    pub length_ms: u64,
    /// Its end, in nanoseconds of `CLOCK_MONOTONIC`; identifies the window.
    #[serde(default)]
    pub until_ns: u64,
    /// lockd served the VIP when the window opened, and there was no fence: new locks may have been
    /// granted until then.
    #[serde(default)]
    pub late: bool,
    pub gate: GateCounts,
    pub lockd: Answers,
    /// Violations with details, oldest first; `lockd.violations` counts all.
    pub violations: Vec<ViolationLine>,
    pub verdict: Verdict,
}

/// What the gate did with the VIP's calls.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateCounts {
    /// New locks, passed so that lockd refuses them.
    pub new_locks: u64,
    /// Reclaims, passed so that lockd grants them.
    pub reclaims: u64,
    /// Calls passed unchanged, because the kernel itself was in grace.
    pub left_to_kernel_grace: u64,
    pub shares_dropped: u64,
    pub packets_dropped: u64,
    pub connections_closed: u64,
    pub packets_fenced: u64,
    /// Packets dropped at lockd's sockets, because the gate did not see them or did not decide.
    #[serde(default)]
    pub packets_guarded: u64,
}

/// What lockd answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answers {
    pub reclaimed: u64,
    pub refused: u64,
    pub reclaims_refused: u64,
    pub reclaims_failed: u64,
    pub other: u64,
    pub violations: u64,
    /// Calls that the gate saw and lockd's lock code did not answer.
    #[serde(default)]
    pub unanswered: u64,
}

/// A lock that should not have been granted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViolationLine {
    pub kind: ViolationKind,
    pub client: IpAddr,
    pub svid: u32,
    pub mode: Mode,
    pub range: Range,
    /// The NFS file handle in hexadecimal.
    #[serde(deserialize_with = "foreign::text")]
    pub fh: String,
    /// Null if it cannot be found.
    #[serde(deserialize_with = "foreign::some_text")]
    pub path: Option<String>,
    pub xid: u32,
    pub port: u16,
}

/// How a lock was granted in spite of grace; see `docs/grace.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ViolationKind {
    NewLock,
    Unseen,
    Waiter,
    Queued,
}

impl Gate {
    /// All windows, sorted by address; after them the addresses that a scope covers.
    pub(crate) fn report(&self, paths: &mut PathFinder) -> Result<Vec<WindowReport>, GraceError> {
        let now = window::now();
        let is_stale = self.is_of_another_lockd()?;
        let violations = self.maps.violations()?;
        let mut windows = self.maps.windows()?;
        windows.retain(|(_, window)| window.opened != 0);
        windows.sort_unstable_by_key(|(vip, _)| vip.ip());
        let gate = self.maps.gate()?;
        let scope = Window {
            opened: gate.scope_opened,
            until: gate.scope_until,
            ..Window::default()
        };
        let mut others = Vec::new();
        if scope.until != 0 {
            let in_window = |vip: &Addr| windows.iter().any(|(other, _)| other == vip);
            let counted = self.maps.counted()?;
            others.extend(counted.into_iter().filter(|vip| !in_window(vip)));
        }
        let windows = windows
            .iter()
            .map(|(vip, window)| (*vip, window, Reach::Vip));
        let others = others.iter().map(|vip| (*vip, &scope, Reach::Filesystem));
        windows
            .chain(others)
            .map(|(vip, window, reach)| {
                let gated = self.maps.gated(vip)?;
                let audited = self.maps.audited(vip)?;
                let open = window::is_open(window, now);
                let of_window = |one: &&Violation| one.vip == vip && one.at >= window.opened;
                Ok(WindowReport {
                    vip: vip.ip(),
                    reach,
                    open,
                    left_ms: whole_milliseconds(window::left(window.until, now)),
                    length_ms: whole_milliseconds(window::left(window.until, window.opened)),
                    until_ns: window.until,
                    late: window.late != 0,
                    gate: gated.into(),
                    lockd: Answers::of(&gated, &audited),
                    violations: violations
                        .iter()
                        .filter(of_window)
                        .map(|violation| line(violation, paths))
                        .collect(),
                    verdict: audit::judge(
                        match is_stale {
                            true => audit::WindowState::Reloaded,
                            false => window::state(window, now),
                        },
                        &gated,
                        &audited,
                    ),
                })
            })
            .collect()
    }
}

fn line(raw: &Violation, paths: &mut PathFinder) -> ViolationLine {
    let handle = &raw.fh[..(raw.fh_len as usize).min(raw.fh.len())];
    ViolationLine {
        kind: match raw.kind {
            violation::NEW_LOCK => ViolationKind::NewLock,
            violation::WAITER => ViolationKind::Waiter,
            violation::QUEUED => ViolationKind::Queued,
            _ => ViolationKind::Unseen,
        },
        client: Addr::ip(raw.client),
        svid: raw.svid,
        mode: Mode::from_kernel(raw.mode),
        range: Range {
            start: raw.start,
            end: raw.end,
        },
        fh: handle.iter().map(|byte| format!("{byte:02x}")).collect(),
        path: paths
            .find_by_handle(handle)
            .ok()
            .map(|path| path.shown().to_string()),
        xid: raw.xid,
        port: raw.port as u16,
    }
}

impl From<Gated> for GateCounts {
    fn from(raw: Gated) -> Self {
        GateCounts {
            new_locks: raw.new,
            reclaims: raw.reclaims,
            left_to_kernel_grace: raw.left,
            shares_dropped: raw.shares,
            packets_dropped: raw.dropped,
            connections_closed: raw.closed,
            packets_fenced: raw.fenced,
            packets_guarded: raw.guarded,
        }
    }
}

impl Answers {
    fn of(gated: &Gated, raw: &Audited) -> Self {
        Answers {
            unanswered: audit::unanswered(gated, raw),
            reclaimed: raw.reclaimed,
            refused: raw.refused,
            reclaims_refused: raw.reclaims_refused,
            reclaims_failed: raw.reclaims_failed,
            other: raw.other,
            violations: raw.violations,
        }
    }
}

impl fmt::Display for WindowReport {
    /// Some lines, each with its newline.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let of = match self.reach {
            Reach::Vip => "",
            Reach::Filesystem => " for the filesystem of another address",
        };
        match self.open {
            true => {
                let left = self.left_ms.div_ceil(1000);
                writeln!(f, "{}: in grace{of}, {left} s left", self.vip)?;
            }
            false => {
                // To a tenth of a second: the requested length, though it was opened a moment
                // later.
                let length = (self.length_ms as f64 / 100.0).round() / 10.0;
                writeln!(f, "{}: grace{of} ended after {length} s", self.vip)?;
            }
        }
        let Answers {
            reclaimed,
            refused,
            reclaims_refused,
            reclaims_failed,
            other,
            unanswered,
            ..
        } = self.lockd;
        let failed = reclaims_refused + reclaims_failed;
        writeln!(
            f,
            "  lockd: {reclaimed} reclaims granted, {refused} new locks refused, {failed} reclaims \
             failed, {other} other answers, {unanswered} calls not answered"
        )?;
        writeln!(
            f,
            "  gate:  {} new locks, {} reclaims, {} left to the kernel's grace; {} SHAREs and {} \
             packets dropped, {} connections closed; {} packets dropped at lockd's sockets",
            self.gate.new_locks,
            self.gate.reclaims,
            self.gate.left_to_kernel_grace,
            self.gate.shares_dropped,
            self.gate.packets_dropped,
            self.gate.connections_closed,
            self.gate.packets_guarded
        )?;
        for violation in &self.violations {
            writeln!(f, "  ✗ {violation}")?;
        }
        if self.late {
            writeln!(
                f,
                "  note: the VIP was up before its grace began: new locks may have been granted"
            )?;
        }
        writeln!(f, "  {}", self.verdict)
    }
}

impl fmt::Display for ViolationLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            ViolationKind::NewLock => "was granted but is not a reclaim",
            ViolationKind::Unseen => "was granted to a call that the gate did not see",
            ViolationKind::Waiter => "was granted to a waiter",
            ViolationKind::Queued => "was queued as a waiter",
        };
        let handle = format!("file handle {}", self.fh);
        write!(
            f,
            "{}: {} lock {} of {}, svid {}, {what}",
            self.client,
            self.mode,
            self.range,
            self.path.as_ref().unwrap_or(&handle),
            self.svid
        )
    }
}
