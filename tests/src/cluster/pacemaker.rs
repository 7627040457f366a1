//! Pacemaker and corosync on the cluster's servers, and what an operator does with them.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::service::Service;
use super::{Cluster, NODES, Node, documented};
use crate::guest::command::finish_within;

/// Maximum grace time. Without a release record, as at the first start, grace lasts that long.
const GRACE: &str = "15s";

/// Maximum time for a transition of the cluster.
const SETTLED: Duration = Duration::from_secs(300);

/// Pacemaker on both servers.
pub struct Pacemaker<'a> {
    cluster: &'a Cluster,
}

/// What a group of resources has to keep the locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agents {
    /// nlmfo's.
    Nlmfo,
    /// Only what resource-agents has.
    Stock,
}

impl Pacemaker<'_> {
    /// Starts it on both servers with a group for each service, which must start.
    pub fn start(cluster: &Cluster, agents: Agents) -> Result<Pacemaker<'_>> {
        let groups: String = (cluster.services.iter())
            .map(|service| group(service, agents))
            .collect::<Result<_>>()?;
        let cib = cib(&groups);
        for node in [&cluster.a, &cluster.b] {
            node.shell(
                "cp -r /dist/ocf/lib /dist/ocf/resource.d /usr/lib/ocf/; ln -sf /nlmfo /usr/sbin/nlmfo\n\
                 mkdir -p /etc/corosync /run/crm /run/resource-agents",
            )?;
            let there = node.node();
            there.write("/etc/corosync/corosync.conf", &corosync_conf())?;
            there.write("/tmp/cib.xml", &cib)?;
            // sm-notify wants names.
            for (number, service) in (1..).zip(&cluster.services) {
                node.shell(&format!("echo {} nfs{number} >>/etc/hosts", service.vip))?;
            }
            let said = node.shell("crm_verify --verbose --xml-file /tmp/cib.xml 2>&1 || true")?;
            ensure!(!said.contains("error"), "crm_verify: {said}");
            // The sockets and pipes of the caller end with it.
            node.shell(
                "install -o hacluster -g haclient -m 600 /tmp/cib.xml /var/lib/pacemaker/cib/cib.xml\n\
                 corosync\n\
                 PCMK_logfile=/var/log/pacemaker/pacemaker.log setsid pacemakerd </dev/null >/tmp/pacemakerd.log 2>&1 &",
            )?;
        }
        let pacemaker = Pacemaker { cluster };
        for service in &cluster.services {
            pacemaker.wait_started(service)?;
        }
        // A resource that starts counts as running.
        pacemaker.settle(pacemaker.asked())?;
        Ok(pacemaker)
    }

    /// The node that an operator would ask: one that lives.
    fn asked(&self) -> &Node {
        let lives = |node: &Node| node.shell("true").is_ok();
        match lives(&self.cluster.a) {
            true => &self.cluster.a,
            false => &self.cluster.b,
        }
    }

    /// Where all of a service's group runs.
    pub fn node_of(&self, service: &Service) -> Result<Option<&Node>> {
        let said = self.asked().shell(&format!(
            "crm_resource --locate --resource {} 2>&1 || true",
            last_of(service)
        ))?;
        let nodes = [&self.cluster.a, &self.cluster.b];
        let is_there = |node: &&&Node| said.contains(&format!("is running on: {}", node.name()));
        Ok(nodes.iter().find(is_there).copied())
    }

    fn wait_started(&self, service: &Service) -> Result<()> {
        self.wait_on(self.asked(), service, "")
    }

    /// Waits until this survivor runs the service's group.
    pub fn wait_taken_over(&self, service: &Service, by: &Node) -> Result<()> {
        self.wait_on(by, service, by.name())?;
        self.settle(by)
    }

    /// Looks once a second: each look costs more than the resources do.
    fn wait_on(&self, asked: &Node, service: &Service, name: &str) -> Result<()> {
        let last = last_of(service);
        let wait = format!(
            "until crm_resource --locate --resource {last} 2>&1 | grep -q 'running on: {name}'; do sleep 1; done"
        );
        let mut command = asked.node().command("sh");
        command.args(["-c", &wait]);
        let started = finish_within(SETTLED, &mut command, "");
        let started = started.context(format!("waiting for the group of {}", service.vip));
        started.map(drop).map_err(|error| {
            let status = self.status().unwrap_or_default();
            error.context(format!("{status}\n{}", self.logs()))
        })
    }

    /// What an operator sees.
    pub fn status(&self) -> Result<String> {
        self.asked()
            .shell("crm_mon -1 --inactive --failcounts 2>&1; true")
    }

    /// Moves a service to a node, and waits until all is done.
    pub fn move_to(&self, service: &Service, to: &Node) -> Result<()> {
        let group = id(service);
        let to_name = to.name();
        self.act(&format!(
            "crm_resource --clear --resource {group}\n\
             crm_resource --move --resource {group} --node {to_name}"
        ))?;
        self.ensure_on(service, to)?;
        self.act(&format!("crm_resource --clear --resource {group}"))
    }

    /// Runs shell on a node that lives, and waits until all that follows is done.
    pub fn act(&self, script: &str) -> Result<()> {
        let asked = self.asked();
        asked.shell(&format!(
            "{{ {script}\n}} >/tmp/acted 2>&1 || {{ cat /tmp/acted >&2; exit 1; }}"
        ))?;
        self.settle(asked)
    }

    /// What happened on the nodes that live.
    pub fn logs(&self) -> String {
        let log = "grep -hE '(grace|takeover)\\(|error:|warning:|notice: Result|Initiating' \
                   /var/log/pacemaker/pacemaker.log | tail -n 80";
        let nodes = [&self.cluster.a, &self.cluster.b];
        let said = nodes.map(|node| {
            let said = node.shell(log).unwrap_or_else(|error| format!("{error:#}"));
            format!("=== {}\n{said}", node.name())
        });
        said.concat()
    }

    fn settle(&self, asked: &Node) -> Result<()> {
        let wait = format!("crm_resource --wait --timeout {}s", SETTLED.as_secs());
        let mut command = asked.node().command("sh");
        command.args(["-c", &wait]);
        let finished = finish_within(SETTLED, &mut command, "")?;
        if finished.code() != 0 {
            bail!(
                "crm_resource --wait: {}\n{}",
                finished.stderr,
                self.status()?
            );
        }
        Ok(())
    }

    /// All of the service's group runs on this node.
    pub fn ensure_on(&self, service: &Service, node: &Node) -> Result<()> {
        let is_there = self
            .node_of(service)?
            .is_some_and(|found| found.name() == node.name());
        if !is_there {
            bail!(
                "{} does not run on {}: {}\n{}",
                service.vip,
                node.name(),
                self.status()?,
                self.logs()
            );
        }
        Ok(())
    }
}

/// The name of a service's group, and of its resources' prefix.
fn id(service: &Service) -> String {
    format!("nfs{}", service.fsid() - 99)
}

/// The last resource of the group.
fn last_of(service: &Service) -> String {
    format!("{}-last", id(service))
}

/// The group of a service: the one that the documentation has, with this service's names. The
/// stock agents' one lacks nlmfo's resources, and has nfsnotify instead.
fn group(service: &Service, agents: Agents) -> Result<String> {
    let mut group = documented("xml")?;
    let without;
    if agents == Agents::Stock {
        without = stock(group)?;
        group = &without;
    }
    let group = group
        .replace("value=\"90s\"", &format!("value=\"{GRACE}\""))
        .replace("nfs1-takeover", "nfs1-last")
        .replace("nfs1-notify", "nfs1-last");
    Ok(service.named(&group))
}

/// The same group without nlmfo's resources.
fn stock(group: &str) -> Result<String> {
    let mut kept = String::new();
    let mut skipped = 0;
    for resource in group.split_inclusive("</primitive>\n") {
        match resource.contains("provider=\"nlmfo\"") {
            true => skipped += 1,
            false => kept.push_str(resource),
        }
    }
    ensure!(
        skipped == 2,
        "the documented group has {skipped} resources of nlmfo"
    );
    let notify = "  <primitive id=\"nfs1-notify\" class=\"ocf\" provider=\"heartbeat\" type=\"nfsnotify\">\n\
                  <instance_attributes id=\"nfs1-notify-params\">\n\
                  <nvpair id=\"nfs1-notify-host\" name=\"source_host\" value=\"192.0.2.1\"/>\n\
                  </instance_attributes>\n\
                  </primitive>\n</group>\n";
    let (all, _) = kept.rsplit_once("</group>").context("the group's end")?;
    Ok(format!("{all}{notify}"))
}

fn cib(groups: &str) -> String {
    // No fencing: a server of the lab falls silent only when its machine has ended.
    let properties = [
        ("stonith-enabled", "false"),
        ("no-quorum-policy", "ignore"),
        ("dc-deadtime", "2s"),
        // An emulated machine is always busy.
        ("load-threshold", "1000%"),
    ];
    let properties: String = properties
        .iter()
        .map(|(name, value)| format!("<nvpair id=\"o-{name}\" name=\"{name}\" value=\"{value}\"/>"))
        .collect();
    format!(
        "<cib validate-with=\"pacemaker-3.8\" epoch=\"1\" num_updates=\"0\" admin_epoch=\"0\">\n\
         <configuration>\n\
         <crm_config><cluster_property_set id=\"cib-bootstrap-options\">{properties}</cluster_property_set></crm_config>\n\
         <nodes/>\n<resources>\n{groups}</resources>\n<constraints/>\n\
         <rsc_defaults><meta_attributes id=\"rsc-options\"><nvpair id=\"stickiness\" name=\"resource-stickiness\" value=\"100\"/></meta_attributes></rsc_defaults>\n\
         </configuration>\n<status/>\n</cib>\n"
    )
}

fn corosync_conf() -> String {
    let nodes: String = (1..)
        .zip(NODES)
        .map(|(number, (name, address))| {
            format!("  node {{\n    ring0_addr: {address}\n    name: {name}\n    nodeid: {number}\n  }}\n")
        })
        .collect();
    format!(
        "totem {{\n  version: 2\n  cluster_name: lab\n  transport: udpu\n  token: 5000\n}}\n\
         nodelist {{\n{nodes}}}\n\
         quorum {{\n  provider: corosync_votequorum\n  two_node: 1\n  wait_for_all: 0\n}}\n\
         logging {{\n  to_logfile: yes\n  logfile: /var/log/corosync/corosync.log\n  to_syslog: no\n}}\n"
    )
}
