//! Pacemaker moves VIPs between two servers, with nlmfo's OCF agents.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::own_server::{Own, Users, on_a_cluster};
use super::{Context, End, Kernels, Manager, Scenario};
use crate::cluster::holdings::{Holdings, ensure_nothing_stolen, ensure_unnoticed, user_of};
use crate::cluster::pacemaker::{Fencing, Pacemaker, Resource};
use crate::cluster::{Cluster, Node};
use crate::guest::node::TestNode;

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "pacemaker-move",
        claim: "Pacemaker moves a group with nlmfo's agents: every client keeps its locks, no other client gets one, and clients of another VIP are not affected",
        run: moved,
        manager: Some(Manager::Pacemaker),
        only_full: Some("four minutes of processor time"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "pacemaker-own-server",
        claim: "Pacemaker moves a server of its own to another node by a standby, and back by crm_resource: its clients of NFSv3, 4.1 and 4.2 keep their locks, and no other client gets one",
        run: own_moved,
        kernels: Kernels::One(NO_KERNEL),
        manager: Some(Manager::Pacemaker),
        only_full: Some(MINUTES),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "pacemaker-own-server-fenced",
        claim: "the cluster software of a node dies while a server of its own serves there: Pacemaker has the node fenced and starts the server on the other node, and its clients of NFSv3, 4.1 and 4.2 reclaim their locks",
        run: own_fenced,
        kernels: Kernels::One(NO_KERNEL),
        manager: Some(Manager::Pacemaker),
        only_full: Some(MINUTES),
        ..Scenario::DEFAULT
    },
];

/// The versions of docs/clusters.md.
const DOCUMENTED: [Option<u8>; 3] = [None, Some(1), Some(2)];

const NO_KERNEL: &str = "Pacemaker sees no kernel; two-nodes-own-server shows the rest";
const MINUTES: &str = "minutes of processor time";

const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

fn moved(context: &Context) -> Result<End> {
    let cluster = Cluster::stopped(&context.nlmfo, &VIPS)?;
    let _state = cluster.share_state()?;
    let [moving, staying] = &cluster.services[..] else {
        unreachable!("two services were asked for");
    };
    let groups = [Resource::group(moving)?, Resource::group(staying)?];
    let pacemaker = Pacemaker::start(&cluster, &groups, Fencing::No)?;
    let everyone = cluster.clients(3)?;
    let (clients, [thief]) = everyone.split_at(2) else {
        unreachable!("three clients were asked for");
    };
    let (from, to) = pacemaker.spread(&groups[0], &groups[1])?;
    let mine = Holdings::take(clients, 0, moving, from)?;
    let others = Holdings::take(clients, 1, staying, to)?;
    let robbing = mine.robbed_by(thief, 0)?;
    let working = user_of(&clients[0], 1, "work")?;
    let began = Instant::now();
    pacemaker.move_to(&groups[0], to)?;
    eprintln!("{}", pacemaker.logs());
    let took = began.elapsed();
    ensure_nothing_stolen(robbing)?;
    let slowest = ensure_unnoticed(working)?;
    eprintln!("moved in {took:?}; slowest answer through another VIP {slowest:?}");
    mine.ensure_on(moving, to)?;
    others.ensure_on(staying, to)?;
    let status = pacemaker.status()?;
    ensure!(!status.contains("Failed"), "{status}");
    mine.give_up(moving, to)?;
    others.give_up(staying, to)?;
    Ok(End::Pass)
}

/// Two servers of their own, which Pacemaker manages with fencing.
struct Owned {
    cluster: Cluster,
    mail: Own,
    data: Own,
    resources: [Resource; 2],
}

impl Owned {
    fn new(context: &Context) -> Result<Owned> {
        let (cluster, mail, data) = on_a_cluster(context, Own::documented)?;
        let resources = [Resource::server("mail")?, Resource::server("data")?];
        Ok(Owned {
            cluster,
            mail,
            data,
            resources,
        })
    }

    fn start(&self) -> Result<Pacemaker<'_>> {
        Pacemaker::start(&self.cluster, &self.resources, Fencing::Lab)
    }

    /// Clients with locks of the mail server.
    fn users(&self) -> Result<Users> {
        Users::start(&TestNode::root(), &self.mail, &self.data, &DOCUMENTED)
    }
}

/// nlmfo's agent on this node has logged the text, at this level.
fn ensure_logged(node: &Node, level: &str, text: &str) -> Result<()> {
    let log = node.shell("grep -F 'server(mail)' /var/log/pacemaker/pacemaker.log || true")?;
    let is_it = |line: &str| line.contains(level) && line.contains(text);
    ensure!(
        log.lines().any(is_it),
        "{level} {text:?} is not in {}'s log: {log}",
        node.name()
    );
    Ok(())
}

fn own_moved(context: &Context) -> Result<End> {
    let owned = Owned::new(context)?;
    let pacemaker = owned.start()?;
    let [mail, data] = &owned.resources;
    let (from, to) = pacemaker.spread(mail, data)?;
    let users = owned.users()?;
    let began = Instant::now();
    pacemaker.standby(from, true)?;
    pacemaker.ensure_on(mail, to)?;
    eprintln!("standby: moved in {:?}", began.elapsed());
    ensure_logged(from, "INFO", "server mail stopped after")?;
    ensure_logged(to, "", "server mail serves after")?;
    pacemaker.standby(from, false)?;
    let began = Instant::now();
    pacemaker.move_to(mail, from)?;
    eprintln!("moved back in {:?}", began.elapsed());
    eprintln!("{}", pacemaker.logs());
    users.finish()?;
    let status = pacemaker.status()?;
    ensure!(!status.contains("Failed"), "{status}");
    Ok(End::Pass)
}

fn own_fenced(context: &Context) -> Result<End> {
    let owned = Owned::new(context)?;
    // Nobody knows after a crash what clients have locked behind delegations (docs/nfsv4.md).
    for node in [&owned.cluster.a, &owned.cluster.b] {
        node.shell("echo 0 >/proc/sys/fs/leases-enable")?;
    }
    let pacemaker = owned.start()?;
    let [mail, data] = &owned.resources;
    let (from, to) = pacemaker.spread(mail, data)?;
    let users = owned.users()?;
    let began = Instant::now();
    // The server goes on serving: only the end of the machine is the end of that.
    from.shell("kill -KILL $(pidof corosync)")?;
    pacemaker.wait_taken_over(mail, to)?;
    eprintln!("fenced and taken over in {:?}", began.elapsed());
    eprintln!("{}", pacemaker.logs());
    ensure!(from.shell("true").is_err(), "{} is not off", from.name());
    ensure_logged(to, "ERROR", "server mail serves, not confirmed")?;
    users.finish()?;
    pacemaker.ensure_on(mail, to)?;
    pacemaker.ensure_on(data, to)?;
    Ok(End::Pass)
}
