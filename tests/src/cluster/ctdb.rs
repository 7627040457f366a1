//! CTDB on the cluster's servers, and what an operator does with it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::service::Service;
use super::{Cluster, LATE, NODES, Node, documented};
use crate::guest::command::finish_within;
use crate::guest::wait::{Seen, until_for};

/// Maximum time until CTDB has done what it was asked for, or has noticed what happened.
const SETTLED: Duration = Duration::from_mins(5);

const CALLOUT: &str = "/usr/share/nlmfo/ctdb/nlmfo-callout";

/// `service`, by which CTDB's callout starts and stops daemons: the guest has no systemd.
const SERVICE: &str = "#!/bin/sh\n\
    case \"$1 $2\" in\n\
    'nfs-kernel-server start') rpc.nfsd --tcp --udp 4 ;;\n\
    'nfs-kernel-server stop') rpc.nfsd 0 ;;\n\
    'rpc-statd start') pidof rpc.statd >/dev/null || rpc.statd --no-notify ;;\n\
    'rpc-statd stop') ! pid=$(pidof rpc.statd) || kill $pid ;;\n\
    'nfs-mountd start') rpc.mountd --port 20048 ;;\n\
    'nfs-mountd stop') kill $(pidof rpc.mountd) ;;\n\
    *) echo \"service $*\" >&2; exit 1 ;;\n\
    esac\n";

const FENCE_NODE: &str = "#!/bin/sh\n\
    printf 'action=off\\nnodename=%s\\n' \"$1\" | fence_lab\n";

/// CTDB on both servers.
pub struct Ctdb<'a> {
    cluster: &'a Cluster,
}

impl Ctdb<'_> {
    /// Starts it on both servers; the first one has all of the cluster's services then.
    pub fn start(cluster: &Cluster) -> Result<Ctdb<'_>> {
        let ctdb = Ctdb { cluster };
        install(cluster, &cluster.a)?;
        cluster.a.shell("ctdbd")?;
        for service in &cluster.services {
            ctdb.wait_on(&cluster.a, service)?;
        }
        // The addresses stay where they are (NoIPFailback).
        install(cluster, &cluster.b)?;
        cluster.b.shell("ctdbd")?;
        ctdb.wait("both nodes to be healthy", &cluster.a, |status| {
            status.matches(" OK").count() == NODES.len()
        })?;
        Ok(ctdb)
    }

    /// Runs `ctdb` on this node.
    pub fn run(&self, on: &Node, command: &str) -> Result<()> {
        let mut ctdb = on.node().command("ctdb");
        let ran = finish_within(SETTLED, ctdb.args(command.split(' ')), "");
        let ran = ran.with_context(|| self.logs())?;
        ensure!(
            ran.code() == 0,
            "ctdb {command}: {}\n{}",
            ran.stderr,
            self.logs()
        );
        Ok(())
    }

    /// Moves the service's address to a node, as an operator does.
    pub fn move_to(&self, service: &Service, to: &Node) -> Result<()> {
        // An emulated machine needs longer than the 10 s of the default.
        let command = format!("--timelimit=40 moveip {} {}", service.vip, number_of(to)?);
        self.run(to, &command)?;
        self.wait_on(to, service)
    }

    fn wait(&self, what: &str, asked: &Node, is_so: impl Fn(&str) -> bool) -> Result<()> {
        until_for(SETTLED, what, || {
            let said = asked.shell("ctdb status 2>&1; ctdb ip all 2>&1; true")?;
            Ok(match is_so(&said) {
                true => Seen::Yes(()),
                false => Seen::No(said),
            })
        })
        .with_context(|| self.logs())
    }

    /// Waits until the node has the service's address, and its takeover has ended; prints the
    /// takeover's report.
    pub fn wait_on(&self, node: &Node, service: &Service) -> Result<()> {
        let number = number_of(node)?;
        let line = format!("{} {number}", service.vip);
        self.wait(
            &format!("{} on {}", service.vip, node.name()),
            node,
            |said| said.lines().any(|said| said.starts_with(&line)),
        )?;
        // The address is shown before the takeover has begun. Its report is read once.
        let log = format!("/run/nlmfo-ctdb/{}.log", service.vip);
        let wait = format!(
            "until grep -qsE 'taken over|not confirmed' {log}; do sleep 1; done; cat {log}; rm {log}"
        );
        let mut command = node.node().command("sh");
        let waited = finish_within(SETTLED, command.args(["-ec", &wait]), "");
        let waited = waited.with_context(|| self.logs())?;
        ensure!(waited.code() == 0, "{wait}: {}", waited.stderr);
        eprintln!("{}", waited.stdout);
        ensure!(!waited.stdout.contains(LATE), "grace began too late");
        Ok(())
    }

    /// What happened on the nodes that live.
    pub fn logs(&self) -> String {
        let logs = "grep -hvE 'WAIT_UNTIL|pending recoveries' /var/log/ctdb/log.ctdb | tail -n 120\n\
                    tail -n 40 /run/nlmfo-ctdb/*.log";
        let said = [&self.cluster.a, &self.cluster.b].map(|node| {
            let said = node
                .shell(logs)
                .unwrap_or_else(|error| format!("{error:#}"));
            format!("=== {}\n{said}", node.name())
        });
        said.concat()
    }
}

fn number_of(node: &Node) -> Result<usize> {
    let number = NODES.iter().position(|(name, _)| *name == node.name());
    number.context("a node of the cluster")
}

/// What docs/clusters.md has, with the lab's names and times.
fn install(cluster: &Cluster, node: &Node) -> Result<()> {
    let there = node.node();
    node.shell("mkdir -p /usr/local/sbin /usr/share/nlmfo /etc/nlmfo/ctdb /run/ctdb")?;
    there.write_program("/usr/sbin/service", SERVICE)?;
    there.write_program("/usr/sbin/fence_lab", include_str!("fence_lab"))?;
    there.write_program("/usr/local/sbin/fence-node", FENCE_NODE)?;
    node.shell(
        "cp -r /dist/ctdb /usr/share/nlmfo/; ln -sf /nlmfo /usr/sbin/nlmfo\n\
         touch /etc/exports /etc/nfs.conf\n\
         for script in 00.ctdb 01.reclock 05.system 10.interface; do\n\
         ctdb event script enable legacy $script; done",
    )?;
    let mut setup = documented("CTDB", "sh")?.to_owned();
    ensure!(cluster.services.len() == 2, "the documented one has two");
    for (number, service) in (1..).zip(&cluster.services) {
        let vip = service.vip.to_string();
        setup = setup.replace(&format!("192.0.2.{number}"), &vip);
        let config = service.named(documented("CTDB", "shell")?);
        there.write(&format!("/etc/nlmfo/ctdb/{vip}"), &config)?;
        node.shell(&format!("mkdir -p {}", service.folder().display()))?;
    }
    for (number, (_, address)) in (1..).zip(NODES) {
        setup = setup.replace(&format!("10.0.0.{number}"), address);
    }
    // A node that is dead is noticed sooner, and an emulated machine may take minutes.
    let setup = setup
        .replace("/var/lib/nlmfo", super::STATE)
        .replace("Timeout=90", "Timeout=240")
        .replace(
            "NoIPFailback=1",
            "NoIPFailback=1\nKeepaliveInterval=2\nControlTimeout=240",
        );
    node.shell(&setup)?;
    let options = format!("STATE_DIR={}\n", super::STATE);
    there.write("/etc/nlmfo/ctdb/default", &options)
}

/// Runs an operation of the callout, as CTDB does.
pub fn callout(node: &Node, operation: &str) -> Result<String> {
    node.shell(&format!("{CALLOUT} {operation}"))
}
