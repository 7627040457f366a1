//! keepalived moves a VIP between two servers, with nlmfo's notify script.

use std::process::Command;

use anyhow::{Context as _, Result};

use super::{Context, End, Manager, Scenario};
use crate::cluster::holdings::{Holdings, ensure_unnoticed, user_of};
use crate::cluster::service::Service;
use crate::cluster::{Cluster, Node, STATE, documented};
use crate::guest::command::run;
use crate::guest::node::TestNode;
use crate::guest::server::end_grace_of;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "keepalived-pair",
        claim: "a keepalived pair moves a VIP there and back: every client keeps its locks; states that come twice or late change nothing",
        run: pair,
        manager: Some(Manager::Keepalived),
        only_full: Some("takes minutes"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "keepalived-crash",
        claim: "a node with a VIP dies: the other node of a keepalived pair takes over, and every client keeps its locks",
        run: crash,
        manager: Some(Manager::Keepalived),
        only_full: Some("takes minutes"),
        ..Scenario::DEFAULT
    },
];

const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

const SCRIPT: &str = "/usr/share/nlmfo/keepalived/nlmfo-notify";

/// Installs the script and the configuration of both services, with this grace.
fn install(cluster: &Cluster, node: &Node, grace: &str) -> Result<()> {
    node.shell(
        "mkdir -p /usr/share/nlmfo/keepalived /etc/nlmfo/keepalived /etc/keepalived\n\
         cp /dist/keepalived/nlmfo-notify /usr/share/nlmfo/keepalived/; ln -sf /nlmfo /usr/sbin/nlmfo\n\
         touch /etc/exports",
    )?;
    for (number, service) in (1..).zip(&cluster.services) {
        let config = service.named(documented("keepalived", "sh")?);
        let config = config
            .replace("90s", grace)
            .replace("OWNER_WAIT=30", "OWNER_WAIT=10");
        let folder = service.folder().display();
        node.shell(&format!("mkdir -p {folder}"))?;
        let path = format!("/etc/nlmfo/keepalived/nfs{number}");
        node.node().write(&path, &config)?;
    }
    // One instance: the other one's states come by hand.
    let config = cluster.services[0].named(documented("keepalived", "keepalived")?);
    node.node()
        .write("/etc/keepalived/keepalived.conf", &config)
}

fn start(node: &Node) -> Result<()> {
    node.shell(
        "keepalived --log-console --dont-fork --log-detail </dev/null >>/tmp/keepalived.log 2>&1 &",
    )?;
    Ok(())
}

/// Waits until a run of the script has taken the instance over.
fn wait_up(node: &Node, instance: &str) -> Result<()> {
    let dir = "/run/nlmfo-keepalived";
    node.shell(&format!(
        "until flock {dir}/{instance}.lock test -e {dir}/{instance}.up 2>/dev/null; do sleep 1; done"
    ))
    .map(drop)
    .with_context(|| {
        let log = node.shell("cat /tmp/keepalived.log").unwrap_or_default();
        format!("waiting for {instance}: {log}")
    })
}

/// A state by hand, as keepalived gives it.
fn state(node: &Node, instance: &str, state: &str) -> Result<()> {
    node.shell(&format!(
        "{SCRIPT} INSTANCE {instance} {state} 100 2>>/tmp/keepalived.log"
    ))?;
    Ok(())
}

fn moved(service: &Service, mine: &Holdings, from: &Node, to: &Node) -> Result<()> {
    from.shell("kill $(cat /run/keepalived.pid)")?;
    wait_up(to, "nfs1")?;
    mine.ensure_on(service, to).with_context(|| {
        let log = |node: &Node| node.shell("cat /tmp/keepalived.log").unwrap_or_default();
        format!("{}\n{}", log(from), log(to))
    })?;
    start(from)
}

fn pair(context: &Context) -> Result<End> {
    let cluster = Cluster::stopped(&context.nlmfo, &VIPS)?;
    let _state = cluster.share_state()?;
    let (a, b) = (&cluster.a, &cluster.b);
    let serve = ["serve", "--state-dir", STATE];
    let _serving = [a.tool().start(&serve)?, b.tool().start(&serve)?];
    for node in [a, b] {
        install(&cluster, node, "90s")?;
    }
    cluster.record_nobody(|number, _| format!("{STATE}/keepalived-nfs{number}.json"))?;
    let [moving, staying] = &cluster.services[..] else {
        unreachable!("two services were asked for");
    };
    start(a)?;
    wait_up(a, "nfs1")?;
    start(b)?;
    state(a, "nfs2", "MASTER")?;
    let clients = cluster.clients(2)?;
    let mine = Holdings::take(&clients, 0, moving, a)?;
    let others = Holdings::take(&clients, 1, staying, a)?;
    let working = user_of(&clients[0], 1, "work")?;

    moved(moving, &mine, a, b)?;
    // Twice and late: nothing changes.
    state(b, "nfs1", "MASTER")?;
    state(a, "nfs1", "BACKUP")?;
    state(a, "nfs2", "MASTER")?;
    state(a, "nfs2", "NONESUCH")?;
    mine.ensure_on(moving, b)?;
    moved(moving, &mine, b, a)?;
    let slowest = ensure_unnoticed(working)?;
    others.ensure_on(staying, a)?;
    eprintln!("slowest answer through another VIP {slowest:?}");

    mine.give_up(moving, a)?;
    others.give_up(staying, a)?;
    Ok(End::Pass)
}

/// The state directory's server has delegated the client book to the dead node: the other one
/// cannot read it before the lease time is over, and that is longer than grace.
fn crash(context: &Context) -> Result<End> {
    let cluster = Cluster::stopped(&context.nlmfo, &VIPS[..1])?;
    let _state = cluster.share_state()?;
    // Longer than grace is here.
    let driver = TestNode::root();
    run(Command::new("rpc.nfsd").arg("0"))?;
    driver.write("/proc/fs/nfsd/nfsv4leasetime", "40")?;
    run(Command::new("rpc.nfsd").arg("4"))?;
    end_grace_of(&driver, "/proc/fs/nfsd/v4_end_grace")?;
    let (a, b) = (&cluster.a, &cluster.b);
    let serve = ["serve", "--state-dir", STATE];
    let _serving = [a.tool().start(&serve)?, b.tool().start(&serve)?];
    for node in [a, b] {
        install(&cluster, node, "30s")?;
    }
    cluster.record_nobody(|number, _| format!("{STATE}/keepalived-nfs{number}.json"))?;
    let service = &cluster.services[0];
    start(a)?;
    wait_up(a, "nfs1")?;
    start(b)?;
    let clients = cluster.clients(2)?;
    let mine = Holdings::take(&clients, 0, service, a)?;
    a.kill()?;
    wait_up(b, "nfs1")?;
    mine.ensure_on(service, b)?;
    mine.give_up(service, b)?;
    Ok(End::Pass)
}
