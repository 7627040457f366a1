//! Pacemaker and corosync on the cluster's servers, and what an operator does with them.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::service::Service;
use super::{Cluster, LATE, NODES, Node, documented};
use crate::guest::command::finish_within;

/// Maximum time for a transition of the cluster.
const SETTLED: Duration = Duration::from_mins(10);

/// Pacemaker on both servers.
pub struct Pacemaker<'a> {
    cluster: &'a Cluster,
}

/// A resource that Pacemaker manages, or a group of them.
pub struct Resource {
    pub(super) id: String,
    /// The last one of the group.
    pub(super) last: String,
    pub(super) xml: String,
}

/// How a node that does not answer is fenced from the disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// Not at all: in this scenario, a server stops answering only when its machine has ended.
    No,
    /// Its machine is ended.
    Lab,
}

impl Resource {
    /// The group of a service: the one that the documentation has, with this service's names.
    pub fn group(service: &Service) -> Result<Resource> {
        let id = format!("nfs{}", service.fsid() - 99);
        let xml = slower(documented("Pacemaker: shared servers", "xml")?).replace(
            "takeover-monitor\" name=\"monitor\" interval=\"60s\"",
            "takeover-monitor\" name=\"monitor\" interval=\"10s\"",
        );
        Ok(Resource {
            last: format!("{id}-takeover"),
            id,
            xml: service.named(&xml),
        })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// A server of its own, as the documentation has it.
    pub fn server(name: &str) -> Result<Resource> {
        let xml = documented("Pacemaker: a server of its own", "xml")?;
        Ok(Resource {
            id: name.to_owned(),
            last: name.to_owned(),
            xml: slower(xml).replace("mail", name),
        })
    }
}

impl Pacemaker<'_> {
    /// Starts it on both servers with these resources, which must start.
    pub fn start<'a>(
        cluster: &'a Cluster,
        resources: &[Resource],
        fencing: Fencing,
    ) -> Result<Pacemaker<'a>> {
        let cib = cib(resources, fencing);
        for node in [&cluster.a, &cluster.b] {
            node.shell(
                "cp -r /dist/ocf/lib /dist/ocf/resource.d /usr/lib/ocf/; ln -sf /nlmfo /usr/sbin/nlmfo\n\
                 mkdir -p /etc/corosync /run/crm /run/resource-agents",
            )?;
            let there = node.node();
            there.write_program("/usr/sbin/fence_lab", include_str!("fence_lab"))?;
            there.write("/etc/corosync/corosync.conf", &corosync_conf())?;
            there.write("/tmp/cib.xml", &cib)?;
            // sm-notify wants names.
            for (number, service) in (1..).zip(&cluster.services) {
                node.shell(&format!("echo {} nfs{number} >>/etc/hosts", service.vip))?;
            }
            let said = node.shell("crm_verify --verbose --xml-file /tmp/cib.xml 2>&1 || true")?;
            ensure!(!said.contains("error"), "crm_verify: {said}");
            node.shell(
                "install -o hacluster -g haclient -m 600 /tmp/cib.xml /var/lib/pacemaker/cib/cib.xml\n\
                 corosync",
            )?;
            start_pacemaker(node)?;
        }
        let pacemaker = Pacemaker { cluster };
        for resource in resources {
            pacemaker.wait_on(pacemaker.asked(), resource, "")?;
        }
        // A resource that starts counts as running.
        pacemaker.settle(pacemaker.asked())?;
        Ok(pacemaker)
    }

    /// A node that runs, which an operator would ask.
    fn asked(&self) -> &Node {
        let lives = |node: &Node| node.shell("true").is_ok();
        match lives(&self.cluster.a) {
            true => &self.cluster.a,
            false => &self.cluster.b,
        }
    }

    /// Where all of a resource runs.
    fn node_of(&self, resource: &Resource) -> Result<Option<&Node>> {
        let said = self.asked().shell(&format!(
            "crm_resource --locate --resource {} 2>&1 || true",
            resource.last
        ))?;
        let nodes = [&self.cluster.a, &self.cluster.b];
        let is_there = |node: &&&Node| said.contains(&format!("is running on: {}", node.name()));
        Ok(nodes.iter().find(is_there).copied())
    }

    /// The node of a resource, and the other one.
    pub fn nodes(&self, resource: &Resource) -> Result<(&Node, &Node)> {
        let Cluster { a, b, .. } = self.cluster;
        let node = self.node_of(resource)?;
        Ok(match node.is_some_and(|node| node.name() == a.name()) {
            true => (a, b),
            false => (b, a),
        })
    }

    /// The node of the first resource, then that of the second, which is another one. Pacemaker
    /// spreads them, unless a node joined when both had started.
    pub fn spread(&self, first: &Resource, second: &Resource) -> Result<(&Node, &Node)> {
        let (here, there) = self.nodes(first)?;
        if self.nodes(second)?.0.name() == here.name() {
            self.move_to(second, there)?;
        }
        Ok((here, there))
    }

    /// Waits until this survivor runs the resource.
    pub fn wait_taken_over(&self, resource: &Resource, by: &Node) -> Result<()> {
        self.wait_on(by, resource, by.name())?;
        self.settle(by)
    }

    /// Polls slowly: each poll costs more than the resources do.
    fn wait_on(&self, asked: &Node, resource: &Resource, name: &str) -> Result<()> {
        let last = &resource.last;
        let wait = format!(
            "until crm_resource --locate --resource {last} 2>&1 | grep -q 'running on: {name}'; do sleep 5; done"
        );
        let mut command = asked.node().command("sh");
        command.args(["-c", &wait]);
        let started = finish_within(SETTLED, &mut command, "");
        let started = started.context(format!("waiting for {}", resource.id));
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

    /// Moves a resource to a node, and waits until all is done.
    pub fn move_to(&self, resource: &Resource, to: &Node) -> Result<()> {
        let id = &resource.id;
        let to_name = to.name();
        self.act(&format!(
            "crm_resource --clear --resource {id}\n\
             crm_resource --move --resource {id} --node {to_name}"
        ))?;
        self.ensure_on(resource, to)?;
        self.act(&format!("crm_resource --clear --resource {id}"))
    }

    /// Takes a node out of service, or back into it, and waits until all is done.
    pub fn standby(&self, node: &Node, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        self.act(&format!(
            "crm_attribute --node {} --name standby --update {state}",
            node.name()
        ))
    }

    /// Switches maintenance mode on or off, and waits until all is done.
    pub fn maintenance(&self, on: bool) -> Result<()> {
        self.act(&format!(
            "crm_attribute --name maintenance-mode --update {on}"
        ))
    }

    /// Ends Pacemaker on this node and starts it again, as an upgrade does.
    pub fn restart_on(&self, node: &Node) -> Result<()> {
        node.shell(
            "kill $(pidof pacemakerd); while pidof pacemakerd >/dev/null; do sleep 1; done",
        )?;
        start_pacemaker(node)?;
        let name = node.name();
        node.shell(&format!(
            "until crm_node --name >/dev/null 2>&1 && crm_mon -1 2>/dev/null | grep -q 'Online:.* {name} '; do sleep 1; done"
        ))?;
        self.settle(node)
    }

    /// The starts and stops of resources until now, on the nodes that run.
    pub fn actions(&self) -> Result<String> {
        let said = [&self.cluster.a, &self.cluster.b].map(|node| {
            let log = "grep -hE 'Result of (start|stop) operation' /var/log/pacemaker/pacemaker.log || true";
            node.shell(log)
        });
        let [a, b] = said;
        Ok(a? + &b?)
    }

    /// Runs shell on a node that runs, and waits until everything that follows is done.
    pub fn act(&self, script: &str) -> Result<()> {
        let asked = self.asked();
        asked.shell(&format!(
            "{{ {script}\n}} >/tmp/acted 2>&1 || {{ cat /tmp/acted >&2; exit 1; }}"
        ))?;
        self.settle(asked)
    }

    /// Nothing has failed, and every address was in grace when it came up.
    pub fn ensure_smooth(&self) -> Result<()> {
        let status = self.status()?;
        let logs = self.logs();
        ensure!(
            !status.contains("Failed") && !logs.contains(LATE),
            "{status}\n{logs}"
        );
        Ok(())
    }

    /// What happened on the nodes that run.
    pub fn logs(&self) -> String {
        let log = "grep -hE '(grace|takeover|server)\\(|error:|warning:|notice: Result|Initiating' \
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

    /// All of the resource runs on this node.
    pub fn ensure_on(&self, resource: &Resource, node: &Node) -> Result<()> {
        let is_there = self
            .node_of(resource)?
            .is_some_and(|found| found.name() == node.name());
        if !is_there {
            bail!(
                "{} does not run on {}: {}\n{}",
                resource.id,
                node.name(),
                self.status()?,
                self.logs()
            );
        }
        Ok(())
    }
}

/// The same with timeouts for a machine whose programs are many times slower.
fn slower(xml: &str) -> String {
    let lines = xml
        .lines()
        .map(|line| match line.trim().starts_with("<op ") {
            true => line.replace("0s\"/>", "00s\"/>") + "\n",
            false => format!("{line}\n"),
        });
    lines.collect()
}

fn start_pacemaker(node: &Node) -> Result<()> {
    // The sockets and pipes of the caller end with it.
    node.shell(
        "PCMK_logfile=/var/log/pacemaker/pacemaker.log setsid pacemakerd </dev/null >/tmp/pacemakerd.log 2>&1 &",
    )?;
    Ok(())
}

fn cib(resources: &[Resource], fencing: Fencing) -> String {
    const FENCE_LAB: &str = "<primitive id=\"power\" class=\"stonith\" type=\"fence_lab\">\n\
         <instance_attributes id=\"power-params\">\
         <nvpair id=\"power-nodes\" name=\"pcmk_host_list\" value=\"a b\"/>\
         </instance_attributes>\n</primitive>\n";
    let (enabled, device) = match fencing {
        Fencing::No => ("false", ""),
        Fencing::Lab => ("true", FENCE_LAB),
    };
    let properties = [
        ("stonith-enabled", enabled),
        // Machines of the lab are not switched on again.
        ("stonith-action", "off"),
        // A node that is still booting.
        ("startup-fencing", "false"),
        ("dc-deadtime", "2s"),
        // An emulated machine is always busy.
        ("load-threshold", "1000%"),
    ];
    let properties: String = properties
        .iter()
        .map(|(name, value)| format!("<nvpair id=\"o-{name}\" name=\"{name}\" value=\"{value}\"/>"))
        .collect();
    let resources: String = resources.iter().map(|one| one.xml.as_str()).collect();
    format!(
        "<cib validate-with=\"pacemaker-3.8\" epoch=\"1\" num_updates=\"0\" admin_epoch=\"0\">\n\
         <configuration>\n\
         <crm_config><cluster_property_set id=\"cib-bootstrap-options\">{properties}</cluster_property_set></crm_config>\n\
         <nodes/>\n<resources>\n{device}{resources}</resources>\n<constraints/>\n\
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
        "totem {{\n  version: 2\n  cluster_name: lab\n  transport: udpu\n  token: 15000\n}}\n\
         nodelist {{\n{nodes}}}\n\
         quorum {{\n  provider: corosync_votequorum\n  two_node: 1\n}}\n\
         logging {{\n  to_logfile: yes\n  logfile: /var/log/corosync/corosync.log\n  to_syslog: no\n}}\n"
    )
}
