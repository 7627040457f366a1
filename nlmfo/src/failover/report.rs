//! The report of a release, as JSON and as text.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::evidence::{Counts, Fate, Other};
use super::nfs4::Nfs4Report;
use crate::observe::counters::Counters;
use crate::observe::describe::{LockLine, ShareLine, WaiterLine};
use crate::release::{HostReport, MethodRef};

/// `nlmfo failover --phase release --json`: one object, `schema`
/// "nlmfo.release/1". Addresses as text, ranges in bytes with both ends included,
/// times in milliseconds.
#[derive(Debug, Serialize)]
pub struct ReleaseReport {
    pub schema: &'static str,
    pub node: String,
    pub kernel: String,
    pub dry_run: bool,
    /// Whether the release of every VIP is confirmed and no other VIP was disturbed.
    pub confirmed: bool,
    /// Fenced VIPs. The fence was raised before the record was taken, and ends when the VIP
    /// leaves this node or its time is over.
    pub fenced: Vec<IpAddr>,
    /// Time left until the last fence ends.
    pub fenced_for_ms: u64,
    pub vips: Vec<VipReport>,
    /// The VIPs that the release must not change.
    pub other_vips: Vec<Other>,
    pub took_ms: f64,
}

impl ReleaseReport {
    pub const SCHEMA: &str = "nlmfo.release/1";

    /// Whether all that was asked for was done.
    pub fn is_good(&self) -> bool {
        self.confirmed || self.dry_run
    }
}

/// Whether the kernel's lists show that the locks of a VIP are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Confirmed,
    NotConfirmed,
    /// A dry run: nothing was changed.
    Planned,
}

/// The release of one VIP.
#[derive(Debug, Serialize)]
pub struct VipReport {
    pub vip: IpAddr,
    /// Whether this is an address of the node, clients have locked through it, or it has a
    /// client book. The release of any other address is confirmed but means nothing.
    pub known: bool,
    pub verdict: Verdict,
    /// Why the release is not confirmed.
    pub blockers: Vec<String>,
    /// What an operator should know even if it is confirmed.
    pub warnings: Vec<String>,
    /// What was held through the VIP before the release.
    pub before: Counts,
    pub steps: Vec<Step>,
    pub released: Vec<Gone<LockLine>>,
    pub waiters_released: Vec<Gone<WaiterLine>>,
    pub shares_released: Vec<Gone<ShareLine>>,
    /// What is still held.
    pub remaining: Vec<LockLine>,
    pub remaining_waiters: Vec<WaiterLine>,
    pub remaining_shares: Vec<ShareLine>,
    /// What NFSv4 clients hold through the VIP. A release does not change it.
    pub nfs4: Nfs4Report,
    /// What lockd did for the VIP from the first snapshot to the last.
    pub counters: Counters,
}

/// One method that was tried, or that a dry run would try.
#[derive(Debug, Serialize)]
pub struct Step {
    pub method: MethodRef,
    /// Why this method was chosen.
    pub reason: String,
    /// What was done; null if the method failed.
    pub action: Option<String>,
    pub error: Option<String>,
    /// Results per host, for methods that work per host.
    pub hosts: Vec<HostReport>,
    pub before: Counts,
    pub after: Counts,
    pub took_ms: f64,
}

/// A lock, waiter or share that was released.
#[derive(Debug, Serialize)]
pub struct Gone<T> {
    #[serde(flatten)]
    pub line: T,
    /// The method that released it; null if its client did.
    pub method: Option<MethodRef>,
    /// When it was first seen to be gone, counted from the first snapshot.
    pub after_ms: f64,
}

impl fmt::Display for ReleaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for VipReport { vip, .. } in self.vips.iter().filter(|vip| !vip.known) {
            writeln!(
                f,
                "! {vip}: this node has never served it: it is not an address of this node, no client \
                 has locked through it, and it has no client book; check that it is the address of \
                 the server, not of a client"
            )?;
        }
        for vip in &self.vips {
            vip.fmt(f)?;
        }
        for other in &self.other_vips {
            write_other(f, other)?;
        }
        let seconds = self.fenced_for_ms.div_ceil(1000);
        for vip in &self.fenced {
            writeln!(
                f,
                "  {vip} is fenced: its lock traffic is dropped until it leaves this node, for at most \
                 {seconds} s"
            )?;
        }
        Ok(())
    }
}

fn write_other(f: &mut fmt::Formatter<'_>, other: &Other) -> fmt::Result {
    let Other {
        vip,
        before,
        gone,
        new,
        requests,
        dropped,
        ..
    } = other;
    match other.fate {
        Fate::Untouched => writeln!(f, "✓ {vip}: unchanged, {before} held"),
        Fate::ChangedByClients => writeln!(
            f,
            "✓ {vip}: {gone} gone and {new} new of {before}, changed by {requests} requests of its own clients"
        ),
        Fate::Disturbed => writeln!(
            f,
            "✗ {vip}: DISTURBED: {gone} gone and {new} new of {before}, but only {requests} requests \
             of its clients; lockd dropped the locks of {dropped} owners"
        ),
    }
}

impl fmt::Display for VipReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} held at the start", self.vip, self.before)?;
        for step in &self.steps {
            write!(f, "  {}", step.method)?;
            if !step.reason.is_empty() {
                write!(f, " ({})", step.reason)?;
            }
            match (&step.action, &step.error) {
                (_, Some(error)) => writeln!(f, ": failed: {error}")?,
                (Some(action), None) => writeln!(
                    f,
                    ": {action}; {} left after {:.0} ms",
                    step.after, step.took_ms
                )?,
                (None, None) => writeln!(f, ": would be tried first")?,
            }
            for failed in step.hosts.iter().filter(|host| host.outcome.is_err()) {
                if let Err(error) = &failed.outcome {
                    writeln!(f, "    {}: {error}", failed.host)?;
                }
            }
        }
        for gone in &self.released {
            writeln!(
                f,
                "  - {}{}",
                text(&gone.line, ""),
                by(gone.method, gone.after_ms)
            )?;
        }
        for gone in &self.waiters_released {
            let line = text(&gone.line.lock, "waiter for ");
            writeln!(f, "  - {line}{}", by(gone.method, gone.after_ms))?;
        }
        for gone in &self.shares_released {
            let line = share(&gone.line);
            writeln!(f, "  - {line}{}", by(gone.method, gone.after_ms))?;
        }
        let still = match self.verdict {
            Verdict::Planned => "  to be released: ",
            _ => "  ! still held: ",
        };
        for left in &self.remaining {
            writeln!(f, "{still}{}", text(left, ""))?;
        }
        for left in &self.remaining_waiters {
            writeln!(f, "{still}{}", text(&left.lock, "waiter for "))?;
        }
        for left in &self.remaining_shares {
            writeln!(f, "{still}{}", share(left))?;
        }
        write!(f, "{}", self.nfs4)?;
        for warning in &self.warnings {
            writeln!(f, "  note: {warning}")?;
        }
        match self.verdict {
            Verdict::Confirmed if self.before.is_none() => writeln!(
                f,
                "✓ {}: confirmed: no{} locks were held, nothing to release",
                self.vip,
                match self.nfs4 {
                    Nfs4Report::LeftOut => " NFSv3",
                    _ => "",
                }
            ),
            Verdict::Confirmed => writeln!(
                f,
                "✓ {}: confirmed: two identical snapshots show no lock, waiter or share, and none \
                 was granted between them",
                self.vip
            ),
            Verdict::Planned => writeln!(f, "- {}: dry run, nothing was changed", self.vip),
            Verdict::NotConfirmed => {
                writeln!(
                    f,
                    "✗ {}: NOT CONFIRMED: {}",
                    self.vip,
                    self.blockers.join("; ")
                )
            }
        }
    }
}

fn text(line: &LockLine, what: &str) -> String {
    format!(
        "{} ({}): {what}{} lock {} of {}, svid {}",
        line.host.client, line.host.client_name, line.mode, line.range, line.file, line.svid
    )
}

fn share(line: &ShareLine) -> String {
    format!(
        "{} ({}): share of {}, access {} deny {}",
        line.host.client, line.host.client_name, line.file, line.access, line.deny
    )
}

fn by(method: Option<MethodRef>, after_ms: f64) -> String {
    match method {
        Some(method) => format!(" [{method}, {after_ms:.0} ms]"),
        None => format!(" [its client, {after_ms:.0} ms]"),
    }
}
