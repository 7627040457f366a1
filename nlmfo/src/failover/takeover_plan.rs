//! What a takeover would do, for a dry run: looks, and changes nothing.

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::reclaim::Expected;
use super::takeover::Plan;
use super::telling::{self, Settled, Teller};
use super::watch::Watch;
use crate::grace::standing;
use crate::grace::way::Way;
use crate::kernel::netns;
use crate::kernel::preflight::Facts;
use crate::notify::names;

/// `nlmfo failover --phase takeover --dry-run --json`: one object, `schema`
/// "nlmfo.takeover-plan/1".
#[derive(Debug, Serialize)]
pub struct PlanReport {
    pub schema: &'static str,
    pub node: String,
    pub kernel: String,
    pub dry_run: bool,
    /// Whether grace would be the gate's; else the kernel's own.
    pub by_gate: bool,
    /// How long grace would last at most.
    pub grace_ms: u64,
    /// On how many filesystems new locks would be refused through every address.
    pub filesystems: usize,
    pub vips: Vec<VipPlan>,
}

/// One VIP's part.
#[derive(Debug, Serialize)]
pub struct VipPlan {
    pub vip: IpAddr,
    pub is_here: bool,
    /// How much longer a grace lasts that is open already; it would get the new time.
    pub open_ms: Option<u64>,
    /// Locks that its clients held on the other node; null if nobody says.
    pub expected: Option<usize>,
    /// How many of them are back already.
    pub back: usize,
    pub notifies: Notifies,
}

/// Who would tell the VIP's clients to reclaim.
#[derive(Debug, Serialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Notifies {
    /// nlmfo, these clients under these names.
    Nlmfo {
        clients: Vec<IpAddr>,
        names: Vec<String>,
    },
    Program {
        program: String,
    },
    /// Somebody else is to.
    Nobody,
    /// nlmfo, but it knows nobody.
    Unknown {
        reason: String,
    },
}

impl PlanReport {
    pub const SCHEMA: &str = "nlmfo.takeover-plan/1";

    /// Looks at what the plan would meet.
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
            vips.push(VipPlan {
                vip,
                is_here: netns::has_address(vip).context("reading this node's addresses")?,
                open_ms: open.and_then(|one| one.grace).map(milliseconds),
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
            by_gate: Way::choose(facts) == Way::Gate,
            grace_ms: milliseconds(plan.grace),
            filesystems: plan.scope.len(),
            vips,
        })
    }
}

async fn notifies(plan: &Plan, vip: IpAddr, settled: &Settled) -> Notifies {
    let (state, config) = match &plan.teller {
        Teller::Nobody => return Notifies::Nobody,
        Teller::Program(program) => {
            return Notifies::Program {
                program: program.display().to_string(),
            };
        }
        Teller::Own { state, config } => (state, config),
    };
    match telling::clients(vip, plan.expect.as_ref(), settled, state, config) {
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

fn milliseconds(time: Duration) -> u64 {
    time.as_millis().try_into().unwrap_or(u64::MAX)
}

impl fmt::Display for PlanReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grace = match self.by_gate {
            true => format!("grace for {} s at most", self.grace_ms.div_ceil(1000)),
            false => "the kernel's own grace".to_owned(),
        };
        for vip in &self.vips {
            writeln!(f, "{}: would be taken over: {grace}", vip.vip)?;
            vip.fmt(f)?;
        }
        if self.filesystems > 0 {
            writeln!(
                f,
                "new locks on {} filesystems would be refused through every address",
                self.filesystems
            )?;
        }
        (self.vips.iter())
            .try_for_each(|vip| writeln!(f, "- {}: dry run, nothing was done", vip.vip))
    }
}

impl fmt::Display for VipPlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(left) = self.open_ms {
            let left = left.div_ceil(1000);
            writeln!(f, "  it is in grace already, for {left} s")?;
        }
        if !self.is_here {
            writeln!(f, "  it is no address of this node yet")?;
        }
        match self.expected {
            Some(all) => writeln!(f, "  {} of {all} expected locks are held", self.back)?,
            None => writeln!(
                f,
                "  what is to come back is not known (--expect): grace would last for its time"
            )?,
        }
        writeln!(f, "  {}", self.notifies)
    }
}

impl fmt::Display for Notifies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notifies::Nlmfo { clients, .. } if clients.is_empty() => {
                f.write_str("no client would be told to reclaim")
            }
            Notifies::Nlmfo { clients, names } => {
                let clients: Vec<String> = clients.iter().map(ToString::to_string).collect();
                let (clients, names) = (clients.join(", "), names.join(", "));
                write!(f, "to be told to reclaim: {clients}, by the names {names}")
            }
            Notifies::Program { program } => write!(f, "{program} would tell its clients"),
            Notifies::Nobody => f.write_str("its clients would not be told (--no-notify)"),
            Notifies::Unknown { reason } => {
                write!(f, "✗ its clients would not be told: {reason}")
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
            vips: vec![VipPlan {
                vip,
                is_here: false,
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
            "10.77.0.1: would be taken over: grace for 90 s at most\n",
            "no address of this node yet",
            "1 of 3 expected locks are held",
            "to be told to reclaim: 10.77.1.1, by the names nfs1, 10.77.0.1",
            "dry run, nothing was done",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        let nobody = plan(Notifies::Nobody).to_string();
        assert!(nobody.contains("--no-notify"), "{nobody}");
    }
}
