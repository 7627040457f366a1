//! What a release did, and what was seen of it: one value for JSON and for text.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::evidence::{Counts, Fate, Other};
use super::nfs4::Nfs4Report;
use crate::observe::counters::Counters;
use crate::observe::describe::{LockLine, ShareLine, WaiterLine};
use crate::release::{HostReport, WayKind};

/// `nlmfo failover --phase release --json`: one object, `schema`
/// "nlmfo.release/1". Addresses as text, ranges in bytes with both ends included,
/// times in milliseconds.
#[derive(Debug, Serialize)]
pub struct ReleaseReport {
    pub schema: &'static str,
    pub node: String,
    pub kernel: String,
    pub dry_run: bool,
    /// Whether every VIP's release is confirmed and no other VIP was disturbed.
    pub confirmed: bool,
    /// VIPs whose lock traffic is dropped since before the record was taken, until they
    /// leave this node or the fence's time is over.
    pub fenced: Vec<IpAddr>,
    /// How much longer that lasts at most.
    pub fenced_for_ms: u64,
    pub vips: Vec<VipReport>,
    /// The VIPs that were not to be touched.
    pub others: Vec<Other>,
    pub took_ms: f64,
}

impl ReleaseReport {
    pub const SCHEMA: &str = "nlmfo.release/1";
}

/// Whether the kernel's lists prove that a VIP's locks are gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Confirmed,
    NotConfirmed,
    /// A dry run: nothing was done.
    Planned,
}

/// One VIP's part.
#[derive(Debug, Serialize)]
pub struct VipReport {
    pub vip: IpAddr,
    /// Whether this is an address of the node, clients have locked through it, or there is a
    /// client book of it. Releasing any other confirms nothing but that.
    pub known: bool,
    pub verdict: Verdict,
    /// Why it is not confirmed.
    pub doubts: Vec<String>,
    /// What an operator should know all the same.
    pub warnings: Vec<String>,
    /// What was held through the VIP at first.
    pub before: Counts,
    pub steps: Vec<Step>,
    pub released: Vec<Gone<LockLine>>,
    pub waiters_released: Vec<Gone<WaiterLine>>,
    pub shares_released: Vec<Gone<ShareLine>>,
    /// What is still there.
    pub remaining: Vec<LockLine>,
    pub remaining_waiters: Vec<WaiterLine>,
    pub remaining_shares: Vec<ShareLine>,
    /// What NFSv4 clients hold through the VIP, which a release does not touch.
    pub nfs4: Nfs4Report,
    /// What lockd did for the VIP from the first snapshot to the last.
    pub counters: Counters,
}

/// One way that was gone, or that would be.
#[derive(Debug, Serialize)]
pub struct Step {
    pub way: WayKind,
    /// Why this way.
    pub reason: String,
    /// What was done, in words; null if it could not be.
    pub action: Option<String>,
    pub error: Option<String>,
    /// What it did host by host, for ways that go so.
    pub hosts: Vec<HostReport>,
    pub before: Counts,
    pub after: Counts,
    pub took_ms: f64,
}

/// Something that was there before and is not any more.
#[derive(Debug, Serialize)]
pub struct Gone<T> {
    #[serde(flatten)]
    pub line: T,
    /// The way after which it was gone; null if its client gave it up itself.
    pub way: Option<WayKind>,
    /// When it was first seen gone, since the first snapshot.
    pub after_ms: f64,
}

impl fmt::Display for ReleaseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for VipReport { vip, .. } in self.vips.iter().filter(|vip| !vip.known) {
            writeln!(
                f,
                "! {vip}: this node has never had it: it is no address here, no client has locked \
                 through it, and there is no client book of it; is it the server's address, and \
                 not a client's?"
            )?;
        }
        for vip in &self.vips {
            vip.fmt(f)?;
        }
        for other in &self.others {
            write_other(f, other)?;
        }
        let seconds = self.fenced_for_ms.div_ceil(1000);
        for vip in &self.fenced {
            writeln!(
                f,
                "  {vip} is fenced off: its lock traffic is dropped until it leaves this node, \
                 {seconds} s at most"
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
        Fate::Untouched => writeln!(f, "✓ {vip}: untouched, all {before} still there"),
        Fate::ChangedByClients => writeln!(
            f,
            "✓ {vip}: {gone} gone and {new} new of {before}, by {requests} requests of its own clients"
        ),
        Fate::Disturbed => writeln!(
            f,
            "✗ {vip}: DISTURBED: {gone} gone and {new} new of {before}, with {requests} requests \
             of its clients; lockd dropped the locks of {dropped} owners"
        ),
    }
}

impl fmt::Display for VipReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} held at first", self.vip, self.before)?;
        for step in &self.steps {
            write!(f, "  {}", step.way)?;
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
                (None, None) => writeln!(f, ": would be tried")?,
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
                by(gone.way, gone.after_ms)
            )?;
        }
        for gone in &self.waiters_released {
            let line = text(&gone.line.lock, "waiter for ");
            writeln!(f, "  - {line}{}", by(gone.way, gone.after_ms))?;
        }
        for gone in &self.shares_released {
            let line = share(&gone.line);
            writeln!(f, "  - {line}{}", by(gone.way, gone.after_ms))?;
        }
        let still = match self.verdict {
            Verdict::Planned => "  to be released: ",
            _ => "  ! still there: ",
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
                "✓ {}: confirmed: nothing was held through it{}, nothing to do",
                self.vip,
                match self.nfs4 {
                    Nfs4Report::LeftOut => " by NFSv3",
                    _ => "",
                }
            ),
            Verdict::Confirmed => writeln!(
                f,
                "✓ {}: confirmed: two agreeing snapshots show no lock, waiter or share, and none \
                 was granted between them",
                self.vip
            ),
            Verdict::Planned => writeln!(f, "- {}: dry run, nothing was done", self.vip),
            Verdict::NotConfirmed => {
                writeln!(
                    f,
                    "✗ {}: NOT CONFIRMED: {}",
                    self.vip,
                    self.doubts.join("; ")
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

fn by(way: Option<WayKind>, after_ms: f64) -> String {
    match way {
        Some(way) => format!(" [{way}, {after_ms:.0} ms]"),
        None => format!(" [its client, {after_ms:.0} ms]"),
    }
}
