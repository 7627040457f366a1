//! Whether a node can give up or take over a VIP now, and what would be lost.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::failover::nfs4::Nfs4Report;
use crate::failover::report::{Verdict, VipReport};
use crate::failover::takeover_plan::{Notifies, VipPlan};
use crate::server::status::{State, Status};

/// What this node would do in a move; the other node does the other half.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Half {
    /// The VIP is an address of this node, or this node holds something through it.
    GiveUp,
    TakeOver,
}

/// The outlook for one VIP, or for one server with all its VIPs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outlook {
    pub vips: Vec<IpAddr>,
    /// Its name, if it is a server of its own.
    pub server: Option<String>,
    pub half: Half,
    /// What is held through it, in words.
    pub held: String,
    /// Why it cannot be done, each with what to do.
    pub hindered: Vec<String>,
    /// What would be lost, each with what to do.
    pub lost: Vec<String>,
    /// What else to know.
    pub notes: Vec<String>,
}

impl Outlook {
    /// For a VIP of the node's own server, from the dry runs of both phases. `services` and `kernel`
    /// list what these lack.
    pub fn of_vip(
        release: &VipReport,
        takeover: &VipPlan,
        services: &[String],
        kernel: &[String],
    ) -> Self {
        let held = release.before.to_string();
        let holds = release.before.total() > 0 || matches!(release.nfs4, Nfs4Report::Held { .. });
        let half = match takeover.address_up || holds {
            true => Half::GiveUp,
            false => Half::TakeOver,
        };
        let mut outlook = Outlook {
            vips: vec![release.vip],
            server: None,
            half,
            held,
            hindered: kernel.to_vec(),
            lost: Vec::new(),
            notes: Vec::new(),
        };
        match half {
            Half::GiveUp => outlook.give_up(release, takeover),
            Half::TakeOver => outlook.take_over(takeover, services),
        }
        outlook
    }

    fn give_up(&mut self, release: &VipReport, takeover: &VipPlan) {
        debug_assert_eq!(release.verdict, Verdict::Planned);
        self.lost.extend(release.nfs4.blocker());
        self.notes.extend(release.warnings.iter().cloned());
        if !takeover.address_up {
            self.notes.push(
                "locks are held through it, but it is not an address of this node: release them with \
                 `nlmfo failover --phase release`"
                    .to_owned(),
            );
        }
        if release.before.total() > 0
            && let Some(step) = release.steps.first()
        {
            self.notes
                .push(format!("the release would begin with {}", step.method));
        }
        self.in_grace(takeover);
    }

    fn take_over(&mut self, takeover: &VipPlan, services: &[String]) {
        self.hindered.extend(services.iter().cloned());
        match &takeover.notifies {
            Notifies::Unknown { reason } => self.notes.push(format!(
                "without a release record, as after a crash, its clients would not be notified and would \
                 lose their locks: {reason}"
            )),
            Notifies::Nlmfo { clients, names } if clients.is_empty() => self.notes.push(format!(
                "no client of it is known here; clients would be notified under {}",
                names.join(", ")
            )),
            other => self.notes.push(other.to_string()),
        }
        self.in_grace(takeover);
    }

    fn in_grace(&mut self, takeover: &VipPlan) {
        if let Some(left) = takeover.open_ms {
            let left = left.div_ceil(1000);
            self.notes.push(format!("it is in grace, {left} s left"));
        }
    }

    /// For a server of its own. `missing` lists what a start needs and this node does not have.
    pub fn of_server(status: &Status, missing: Vec<String>) -> Self {
        let name = &status.name;
        let here = status.state != State::Stopped;
        let mut outlook = Outlook {
            vips: status.vips.iter().map(|vip| vip.vip.address).collect(),
            server: Some(name.clone()),
            half: if here { Half::GiveUp } else { Half::TakeOver },
            held: match (here, status.facts.clients) {
                (true, 1) => "1 NFSv4 client".to_owned(),
                (true, clients) => format!("{clients} NFSv4 clients"),
                (false, _) => "not running here".to_owned(),
            },
            hindered: Vec::new(),
            lost: Vec::new(),
            notes: Vec::new(),
        };
        match here {
            true => {
                let problems = status.problems.iter();
                outlook.hindered.extend(problems.map(|problem| {
                    format!("{problem}; `nlmfo server restart {name}` starts what is missing")
                }));
                let grace = &status.facts.grace;
                if grace.nfsd || grace.lockd {
                    outlook.notes.push(
                        "it is in grace: clients that have not reclaimed yet reclaim on the other node"
                            .to_owned(),
                    );
                }
            }
            false => outlook.hindered = missing,
        }
        outlook
    }
}

impl Outlook {
    /// Lines for a person; `node` stands for the node that this is about.
    pub fn write(&self, out: &mut impl fmt::Write, node: &str) -> fmt::Result {
        let vips: Vec<String> = self.vips.iter().map(IpAddr::to_string).collect();
        let vips = vips.join(", ");
        match &self.server {
            Some(name) => writeln!(out, "  server {name} ({vips}): {}", self.held)?,
            None => writeln!(out, "  {vips}: {}", self.held)?,
        }
        let what = match self.half {
            Half::GiveUp => "give it up",
            Half::TakeOver => "take it over",
        };
        match (self.hindered.is_empty(), self.lost.is_empty()) {
            (false, _) => writeln!(out, "    ✗ {node} cannot {what} now")?,
            (true, false) => writeln!(out, "    ✗ {node} can {what} now, but state would be lost")?,
            (true, true) => writeln!(out, "    ✓ {node} can {what} now")?,
        }
        let mut lines = |mark: &str, all: &[String]| {
            (all.iter()).try_for_each(|text| writeln!(out, "      {mark}{text}"))
        };
        lines("", &self.hindered)?;
        lines("lost: ", &self.lost)?;
        lines("note: ", &self.notes)
    }
}
