//! The dry run of a takeover: reports what it would do and changes nothing.

use std::fmt;
use std::net::IpAddr;

use anyhow::Context;
use serde::Serialize;

use super::notification::{self, Notifier, Settled};
use super::reclaim::Expected;
use super::takeover::Plan;
use super::watch::Watch;
use crate::grace::method::{self, Method};
use crate::grace::standing;
use crate::kernel::netns;
use crate::kernel::preflight::Facts;
use crate::notify::names;
use crate::times::whole_milliseconds;

/// `nlmfo failover --phase takeover --dry-run --json`: one object, `schema`
/// "nlmfo.takeover-plan/1".
#[derive(Debug, Serialize)]
pub struct PlanReport {
    pub schema: &'static str,
    pub node: String,
    pub kernel: String,
    pub dry_run: bool,
    /// Whether the gate would provide grace; otherwise the kernel would.
    pub by_gate: bool,
    /// Maximum grace time.
    pub grace_ms: u64,
    /// Number of filesystems on which new locks would be refused through every address.
    pub filesystems: usize,
    /// The services of this node that would lose the locks: unless they become ready in time
    /// (`--wait-services`), the takeover would be refused.
    pub blockers: Vec<String>,
    pub vips: Vec<VipPlan>,
}

/// The plan for one VIP.
#[derive(Debug, Serialize)]
pub struct VipPlan {
    pub vip: IpAddr,
    pub address_up: bool,
    /// Time left of a grace window that is already open; it would get the new time.
    pub open_ms: Option<u64>,
    /// It is up without fence and grace, and not all expected locks are held: the takeover would
    /// not be confirmed.
    pub late: bool,
    /// Locks that its clients held on the old node; null without a release record.
    pub expected: Option<usize>,
    /// How many of them are held already.
    pub back: usize,
    pub notifies: Notifies,
}

/// Who would notify the VIP's clients.
#[derive(Debug, Serialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Notifies {
    /// nlmfo would notify these clients under these names.
    Nlmfo {
        clients: Vec<IpAddr>,
        names: Vec<String>,
    },
    Program {
        program: String,
    },
    /// `--no-notify`: another program does.
    Nobody,
    /// nlmfo would, but knows no client.
    Unknown {
        reason: String,
    },
}

impl PlanReport {
    pub const SCHEMA: &str = "nlmfo.takeover-plan/1";

    /// Checks the state of the node for the plan.
    pub async fn look(plan: &Plan, facts: &Facts, watch: &mut Watch) -> anyhow::Result<Self> {
        let standing = standing::of(&plan.vips)?;
        let mut vips = Vec::new();
        for &vip in &plan.vips {
            let held = watch.look(vip)?.ours;
            let expected = plan.expect.as_ref().map(|record| Expected::of(record, vip));
            let missing = expected.as_ref().map_or(0, |all| all.missing(&held).len());
            let count = expected.as_ref().map(Expected::len);
            let settled = expected.map(|expected| (vip, expected.settled(&held)));
            let open = standing.iter().find(|one| one.vip == vip);
            let is_complete = count.is_some() && missing == 0;
            vips.push(VipPlan {
                vip,
                address_up: netns::has_address(vip).context("reading this node's addresses")?,
                late: !is_complete && open.is_none() && method::could_be_granted(vip),
                open_ms: open.and_then(|one| one.grace).map(whole_milliseconds),
                expected: count,
                back: count.unwrap_or(0).saturating_sub(missing),
                notifies: notifies(plan, vip, &settled.into_iter().collect()).await,
            });
        }
        Ok(PlanReport {
            schema: Self::SCHEMA,
            node: netns::node(),
            kernel: facts.release.clone(),
            dry_run: true,
            by_gate: Method::choose(facts) == Method::Gate,
            grace_ms: whole_milliseconds(plan.grace),
            filesystems: plan.scope.len(),
            blockers: plan.blockers().await,
            vips,
        })
    }
}

async fn notifies(plan: &Plan, vip: IpAddr, settled: &Settled) -> Notifies {
    let (state, config) = match &plan.notifier {
        Notifier::Disabled => return Notifies::Nobody,
        Notifier::Program(program) => {
            return Notifies::Program {
                program: program.display().to_string(),
            };
        }
        Notifier::Own { state, config } => (state, config),
    };
    match notification::clients(vip, plan.expect.as_ref(), settled, state, config) {
        Err(reason) => Notifies::Unknown { reason },
        Ok(clients) => {
            let names = names::of(vip, &[], config).await;
            Notifies::Nlmfo {
                clients,
                names: names.into_iter().map(|name| name.name).collect(),
            }
        }
    }
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grace = match self.by_gate {
            true => format!("grace for at most {} s", self.grace_ms.div_ceil(1000)),
            false => "kernel grace".to_owned(),
        };
        for vip in &self.vips {
            writeln!(f, "{}: takeover with {grace}", vip.vip)?;
            vip.fmt(f)?;
        }
        if !self.blockers.is_empty() {
            writeln!(
                f,
                "✗ it would be refused: services on this node are not ready"
            )?;
        }
        for blocker in &self.blockers {
            writeln!(f, "  {blocker}")?;
        }
        if self.filesystems > 0 {
            writeln!(
                f,
                "new locks on {} filesystems would be refused through all addresses",
                self.filesystems
            )?;
        }
        (self.vips.iter())
            .try_for_each(|vip| writeln!(f, "- {}: dry run, nothing was changed", vip.vip))
    }
}

impl fmt::Display for VipPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(left) = self.open_ms {
            let left = left.div_ceil(1000);
            writeln!(f, "  it is already in grace, {left} s left")?;
        }
        if !self.address_up {
            writeln!(f, "  it is not an address of this node yet")?;
        }
        if self.late {
            writeln!(
                f,
                "  ✗ it would not be confirmed: the VIP is up without grace, and new locks may be \
                 granted"
            )?;
        }
        match self.expected {
            Some(all) => writeln!(f, "  {} of {all} expected locks are held", self.back)?,
            None => writeln!(f, "  without --expect, grace would last for its full time")?,
        }
        writeln!(f, "  {}", self.notifies)
    }
}

impl fmt::Display for Notifies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notifies::Nlmfo { clients, .. } if clients.is_empty() => {
                f.write_str("no client would be notified")
            }
            Notifies::Nlmfo { clients, names } => {
                let clients: Vec<String> = clients.iter().map(ToString::to_string).collect();
                let (clients, names) = (clients.join(", "), names.join(", "));
                write!(f, "would notify {clients}, under the names {names}")
            }
            Notifies::Program { program } => write!(f, "{program} would notify its clients"),
            Notifies::Nobody => f.write_str("its clients would not be notified (--no-notify)"),
            Notifies::Unknown { reason } => {
                write!(f, "✗ its clients would not be notified: {reason}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_says_what_would_be_done() {
        let vip = "10.77.0.1".parse().unwrap();
        let plan = |notifies| PlanReport {
            schema: PlanReport::SCHEMA,
            node: "b".into(),
            kernel: "6.12".into(),
            dry_run: true,
            by_gate: true,
            grace_ms: 90_000,
            filesystems: 0,
            blockers: vec!["rpc.statd: no answer: start it".into()],
            vips: vec![VipPlan {
                vip,
                address_up: false,
                late: true,
                open_ms: None,
                expected: Some(3),
                back: 1,
                notifies,
            }],
        };
        let text = plan(Notifies::Nlmfo {
            clients: vec!["10.77.1.1".parse().unwrap()],
            names: vec!["nfs1".into(), "10.77.0.1".into()],
        })
        .to_string();
        for words in [
            "10.77.0.1: takeover with grace for at most 90 s\n",
            "not an address of this node yet",
            "would not be confirmed: the VIP is up without grace",
            "1 of 3 expected locks are held",
            "would notify 10.77.1.1, under the names nfs1, 10.77.0.1",
            "refused: services on this node are not ready\n  rpc.statd: no answer",
            "dry run, nothing was changed",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let nobody = plan(Notifies::Nobody).to_string();
        assert!(nobody.contains("--no-notify"), "{nobody}");
    }
}
