//! Two servers with disks in common, and what moves between them: a VIP with its
//! filesystem. Runs on the cluster's driver, where the clients live.
//!
//! The host side (`tests/lab.rs`) boots the machines and starts [`node::serve`] on the
//! servers. The driver bridges them with its clients.

pub mod agent;
pub mod ctdb;
pub mod handover;
pub mod holdings;
pub mod killed;
pub mod measured;
pub mod node;
pub mod pacemaker;
pub mod service;
pub mod stock;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use nlmfo::observe::host::Transport;

use self::service::Service;
use crate::guest::client::Client;
use crate::guest::command::{finish, run, silent};
use crate::guest::lab::MountedClient;
use crate::guest::node::TestNode;
use crate::guest::server::{BRIDGE, Daemons, OWN_ADDRESS, export_folder, make_bridge};
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

/// Where the servers have the state directory that they share.
pub const STATE: &str = "/shared";

/// What a takeover's report says if its cluster manager brought the address up before grace.
pub const LATE: &str = "the VIP was up before its grace began";

/// The servers' names and addresses, in the order of the driver's cables.
pub const NODES: [(&str, &str); 2] = [("a", "10.77.2.1"), ("b", "10.77.2.2")];

/// The configuration of this language that people copy, in a section of docs/clusters.md.
pub fn documented(section: &str, language: &str) -> Result<&'static str> {
    const CLUSTERS: &str = include_str!("../../../docs/clusters.md");
    let (_, section) = CLUSTERS
        .split_once(&format!("\n## {section}\n"))
        .with_context(|| format!("docs/clusters.md has no section {section:?}"))?;
    let (_, rest) = section
        .split_once(&format!("```{language}\n"))
        .with_context(|| format!("docs/clusters.md has no configuration in {language}"))?;
    let (text, _) = rest
        .split_once("```")
        .context("the end of a configuration")?;
    Ok(text)
}

/// A server, seen from the driver.
pub struct Node {
    node: TestNode,
    pub address: IpAddr,
    tool: PathBuf,
}

/// The two servers, and their services in the order of the VIPs that were asked for.
pub struct Cluster {
    pub a: Node,
    pub b: Node,
    pub services: Vec<Service>,
}

impl Cluster {
    /// A service for each VIP, all on the first server. `nlmfo` is the tool's path there.
    pub fn up(nlmfo: &Path, vips: &[&str]) -> Result<Cluster> {
        let cluster = Self::stopped(nlmfo, vips)?;
        for service in &cluster.services {
            service.start(&cluster.a)?;
        }
        Ok(cluster)
    }

    /// [`Cluster::up`], but the services are not started.
    pub fn stopped(nlmfo: &Path, vips: &[&str]) -> Result<Cluster> {
        run(Command::new("modprobe").args(["-a", "virtio_net", "bridge", "nfsv3"]))?;
        let driver = TestNode::root();
        make_bridge(&driver)?;
        for port in 0..NODES.len() {
            driver.ip(&format!("link set eth{port} master {BRIDGE} up\n"))?;
        }
        // As the servers have it (`Daemons::start`): clients try again sooner.
        driver.write("/proc/sys/fs/nfs/nlm_timeout", "3")?;
        let [a, b] = NODES.map(|(name, address)| -> Result<Node> {
            let address: IpAddr = address.parse()?;
            Ok(Node {
                node: agent::node(name, address),
                address,
                tool: nlmfo.into(),
            })
        });
        let (a, b) = (a?, b?);
        let services = vips
            .iter()
            .enumerate()
            .map(|(number, vip)| {
                let vip = vip.parse().map_err(|error| anyhow!("{vip}: {error}"))?;
                Service::new(number, vip)
            })
            .collect::<Result<Vec<_>>>()?;
        for node in [&a, &b] {
            node.wait_up()?;
        }
        for service in &services {
            service.format(&a)?;
        }
        Ok(Cluster { a, b, services })
    }

    /// A directory that both servers have at [`STATE`], by NFSv4 from the driver, for as long as
    /// what is returned is kept.
    pub fn share_state(&self) -> Result<Daemons> {
        let driver = TestNode::root();
        driver.create_dir(STATE)?;
        run(Command::new("mount").args(["-t", "tmpfs", "shared", STATE]))?;
        let daemons = Daemons::start(&driver)?;
        export_folder(&driver, Path::new(STATE), 1)?;
        let source = format!("{OWN_ADDRESS}:{STATE}");
        for node in [&self.a, &self.b] {
            node.shell(&format!(
                "mkdir {STATE}; mount -t nfs -o vers=4.2 {source} {STATE}"
            ))?;
        }
        Ok(daemons)
    }

    /// Writes empty release records to `path`, where a cluster manager keeps them, so that the first
    /// start of the services does not wait for unknown clients.
    pub fn record_nobody(&self, path: impl Fn(usize, &Service) -> String) -> Result<()> {
        for (number, service) in (1..).zip(&self.services) {
            let (vip, record) = (service.vip.to_string(), path(number, service));
            let release = [
                "failover",
                "--phase",
                "release",
                "--vip",
                &vip,
                "--no-fence",
                "--record",
                &record,
                "--state-dir",
                STATE,
            ];
            self.a.tool().expect(exit::CONFIRMED, &release)?;
        }
        Ok(())
    }

    /// Clients 1 to `count`, each with a mount through every VIP, in the services' order.
    pub fn clients(&self, count: u8) -> Result<Vec<MountedClient>> {
        thread::scope(|scope| {
            let joining: Vec<_> = (1..=count)
                .map(|number| scope.spawn(move || self.client(number)))
                .collect();
            joining
                .into_iter()
                .map(|thread| thread.join().expect("joining does not panic"))
                .collect()
        })
    }

    fn client(&self, number: u8) -> Result<MountedClient> {
        let client = Client::join_bridge(&TestNode::root(), number)?;
        let mounts = self
            .services
            .iter()
            .map(|service| client.mount_export(service.folder(), service.vip, Transport::Tcp))
            .collect::<Result<_>>()?;
        Ok(MountedClient { client, mounts })
    }
}

impl Node {
    pub fn name(&self) -> &str {
        self.node.name()
    }

    pub fn node(&self) -> &TestNode {
        &self.node
    }

    /// The tool under test, there.
    pub fn tool(&self) -> Tool<'_> {
        Tool::new(&self.tool, &self.node)
    }

    /// Runs lines of shell there, up to the first that fails, and returns their output.
    pub fn shell(&self, script: &str) -> Result<String> {
        run(self.node.command("sh").args(["-ec", script]))
            .with_context(|| format!("on node {}", self.name()))
    }

    /// A program there that has the tool tell the VIP's clients, which `whom` names: a record
    /// or the client book, by options of `nlmfo notify`.
    pub fn notifier(&self, whom: &str) -> Result<&'static str> {
        const PATH: &str = "/tmp/notify";
        let tool = self.tool.display();
        let script = format!("#!/bin/sh\nexec {tool} notify --vip \"$1\" {whom}\n");
        self.node.write_program(PATH, &script)?;
        Ok(PATH)
    }

    /// [`Node::kill`], of a machine that starts again ([`Extra::Reboots`](crate::scenarios::Extra::Reboots)).
    pub fn reboot(&self) -> Result<()> {
        self.kill()?;
        self.wait_up()
    }

    /// Ends the machine at once, like a power failure.
    pub fn kill(&self) -> Result<()> {
        let mut shell = self.node.command("sh");
        shell.args(["-c", "echo b >/proc/sysrq-trigger"]);
        // There is no answer, and the connection does not end.
        let mut last = silent(shell).spawn()?;
        let ended = until(&format!("the end of node {}", self.name()), || {
            let mut ping = Command::new("ping");
            let echo = finish(
                ping.args(["-c", "1", "-W", "1", &self.address.to_string()]),
                "",
            )?;
            Ok(match echo.code() {
                0 => Seen::No(echo.stdout),
                _ => Seen::Yes(()),
            })
        });
        last.kill()?;
        last.wait()?;
        ended
    }

    fn wait_up(&self) -> Result<()> {
        until(&format!("node {} to be up", self.name()), || {
            let finished = finish(&mut self.node.command("true"), "")?;
            Ok(match finished.code() {
                0 => Seen::Yes(()),
                _ => Seen::No(finished.stderr),
            })
        })
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_demo_boots_the_same_nodes() {
        assert_eq!(super::NODES, xtask::demo::NODES);
    }
}
