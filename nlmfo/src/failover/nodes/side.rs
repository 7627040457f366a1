//! One node before a move: how it is set up, and what it can do with each VIP now.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::Topic;
use super::outlook::Outlook;
use super::settings::NodeFacts;
use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::failover::options::Options;
use crate::failover::readiness::Readiness;
use crate::failover::report::VipReport;
use crate::failover::revoked;
use crate::failover::run::dry;
use crate::failover::services::blockers;
use crate::failover::takeover_plan::VipPlan;
use crate::failover::watch::{Watch, observe};
use crate::kernel::preflight::Facts;
use crate::notify::config::Config;
use crate::notify::state_dir::StateDir;
use crate::runtime;
use crate::server::{Server, check, status};

/// One node, also as another node reads it.
#[derive(Serialize, Deserialize)]
pub struct Side {
    pub node: NodeFacts,
    /// What this kernel and node lack for a failover, each with what to do.
    pub missing: Vec<String>,
    /// What makes this kernel crash in a move, each with what to do.
    #[serde(default)]
    pub dangers: Vec<String>,
    pub outlooks: Vec<Outlook>,
}

impl Side {
    /// Looks at this node and these VIPs; none means all that it knows. `nlmfo` is our own version.
    ///
    /// # Errors
    /// If the asynchronous runtime cannot be started. What cannot be read is listed in the result.
    pub fn look(vips: &[IpAddr], state: &StateDir, nlmfo: &str) -> Result<Self, Failure> {
        let ready = Readiness::look(vips, state, Duration::ZERO)?;
        let kernel = blockers(&ready.kernel);
        let services = blockers(&ready.services);
        let mut side = Side {
            node: NodeFacts::gather(nlmfo),
            missing: [&kernel[..], &services[..]].concat(),
            dangers: Vec::new(),
            outlooks: Vec::new(),
        };
        // Errors in their configuration are reported elsewhere.
        let servers = Server::all().unwrap_or_default();
        for server in &servers {
            let mine = |vip: &IpAddr| server.description.has_vip(*vip);
            if vips.is_empty() || vips.iter().any(mine) {
                side.add_server(server);
            }
        }
        let observed = observe().and_then(|(facts, mut watch)| {
            side.dangers = revoked::left(&mut watch);
            let mut vips = match vips {
                [] => known(state, &mut watch)?,
                vips => vips.iter().copied().collect(),
            };
            vips.retain(|vip| !servers.iter().any(|one| one.description.has_vip(*vip)));
            planned(vips.into_iter().collect(), state, &facts, watch)
        });
        match observed {
            Ok(planned) => {
                let outlooks = planned.into_iter().map(|(release, takeover)| {
                    Outlook::of_vip(&release, &takeover, &services, &kernel)
                });
                side.outlooks.extend(outlooks);
            }
            // What is missing says why.
            Err(_) if !side.missing.is_empty() => {}
            Err(failure) => {
                let unread = format!("the locks: {:#}", failure.error);
                side.node.unread.push(unread);
            }
        }
        Ok(side)
    }

    /// Adds a server of its own.
    fn add_server(&mut self, server: &Server) {
        let seen = status::of(server).and_then(|status| Ok((status, check::missing(server)?)));
        match seen {
            Ok((status, missing)) => self.outlooks.push(Outlook::of_server(&status, missing)),
            Err(error) => {
                let unread = format!("server {}: {}", server.name(), chain(&error));
                self.node.unread.push(unread);
            }
        }
    }

    /// The exit status that a move now would have.
    pub fn exit(&self) -> Exit {
        let hindered = self.outlooks.iter().any(|one| !one.hindered.is_empty());
        let lost = self.outlooks.iter().any(|one| !one.lost.is_empty());
        match () {
            () if hindered || !self.missing.is_empty() || !self.dangers.is_empty() => {
                Exit::Unsupported
            }
            () if lost || !self.node.unread.is_empty() => Exit::NotConfirmed,
            () => Exit::Done,
        }
    }

    /// Lines for a person; `node` stands for the node that this is about.
    pub fn write(&self, out: &mut impl fmt::Write, node: &str) -> fmt::Result {
        let value = |topic| self.node.value(topic).unwrap_or("unknown");
        writeln!(
            out,
            "{}: nlmfo {}, Linux {}, nfs-utils {}",
            self.node.name,
            value(Topic::Nlmfo),
            value(Topic::Kernel),
            value(Topic::NfsUtils)
        )?;
        for missing in &self.missing {
            writeln!(out, "  ✗ missing: {missing}")?;
        }
        for danger in &self.dangers {
            writeln!(out, "  ✗ {danger}")?;
        }
        for unread in &self.node.unread {
            writeln!(out, "  ? not known: {unread}")?;
        }
        (self.outlooks.iter()).try_for_each(|outlook| outlook.write(out, node))
    }
}

/// The dry runs of both phases for each VIP of the node's own server.
fn planned(
    vips: Vec<IpAddr>,
    state: &StateDir,
    facts: &Facts,
    mut watch: Watch,
) -> Result<Vec<(VipReport, VipPlan)>, Failure> {
    if vips.is_empty() {
        return Ok(Vec::new());
    }
    let options = Options::dry_run(vips, state.clone());
    let planned = runtime::run(dry::both(&options, facts, &mut watch));
    let (release, takeover) = planned.context("starting the asynchronous runtime")??;
    Ok(release.vips.into_iter().zip(takeover.vips).collect())
}

/// The VIPs with locks, a client book or configured names.
fn known(state: &StateDir, watch: &mut Watch) -> Result<BTreeSet<IpAddr>, Failure> {
    let books = (state.vips()).with_context(|| format!("list {}", state.path().display()))?;
    let mut vips: BTreeSet<IpAddr> = books.into_iter().collect();
    // An invalid one is reported elsewhere.
    vips.extend(Config::read(None).unwrap_or_default().vips());
    let table = watch.snapshot(None)?.table;
    let hosts = table.active_hosts().into_iter();
    let hosts = hosts.map(|id| table.host(id).key);
    let ours = hosts.filter(|host| watch.is_ours(host));
    vips.extend(ours.map(|host| host.vip));
    Ok(vips)
}
