//! Pacemaker moves VIPs between two servers, with nlmfo's OCF agents.

mod measured;

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

pub use self::measured::MEASURED;
use super::own_server::{Asks, Own, Users, on_a_cluster};
use super::{Context, End, Kernels, Manager, Scenario};
use crate::cluster::holdings::{Holdings, ensure_nothing_stolen, ensure_unnoticed, user_of};
use crate::cluster::pacemaker::{Fencing, Pacemaker, Resource};
use crate::cluster::service::Service;
use crate::cluster::{Cluster, Node, STATE};
use crate::guest::busy::Busy;
use crate::guest::daemons::wait_lockd_blocked;
use crate::guest::lab::MountedClient;
use crate::guest::node::TestNode;
use crate::guest::server::{Daemons, NLM_GRACE_PERIOD};
use crate::guest::tool::{Running, exit};

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
        name: "pacemaker-bad-days",
        claim: "two groups with nlmfo's agents: nfsd stops under one, and it moves; in maintenance mode the NFS server and Pacemaker are restarted, and nothing moves; a standby moves both at once: every client keeps its locks, and no other client gets one",
        run: bad_days,
        manager: Some(Manager::Pacemaker),
        only_full: Some(MINUTES),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "pacemaker-stop-fails",
        claim: "rpc.statd hangs, and with it the release of a group that is to move: its stop fails, Pacemaker has the node fenced, and both groups of that node start at once on the other one: every client keeps its locks, and no other client gets one",
        run: stop_fails,
        manager: Some(Manager::Pacemaker),
        only_full: Some(MINUTES),
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

/// Where nlmfo's agent has its release record.
fn record_of(_: usize, service: &Service) -> String {
    format!("{STATE}/record-{}.json", service.vip)
}

fn moved(context: &Context) -> Result<End> {
    let cluster = Cluster::stopped(&context.nlmfo, &VIPS)?;
    let _state = cluster.share_state()?;
    cluster.record_nobody(record_of)?;
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
    pacemaker.ensure_smooth()?;
    mine.give_up(moving, to)?;
    others.give_up(staying, to)?;
    Ok(End::Pass)
}

/// Two groups of shared servers. The nodes share the state directory, and keep the client book.
struct Grouped {
    cluster: Cluster,
    groups: [Resource; 2],
    _serving: [Running; 2],
    _state: Daemons,
}

impl Grouped {
    fn new(context: &Context) -> Result<Grouped> {
        let cluster = Cluster::stopped(&context.nlmfo, &VIPS)?;
        let state = cluster.share_state()?;
        cluster.record_nobody(record_of)?;
        let serve = ["serve", "--state-dir", STATE];
        let serving = [
            cluster.a.tool().start(&serve)?,
            cluster.b.tool().start(&serve)?,
        ];
        let groups = [
            Resource::group(&cluster.services[0])?,
            Resource::group(&cluster.services[1])?,
        ];
        Ok(Grouped {
            cluster,
            groups,
            _serving: serving,
            _state: state,
        })
    }
}

/// The locks through both VIPs, and where they are.
struct Both<'a> {
    services: &'a [Service],
    held: [Holdings; 2],
}

impl Both<'_> {
    /// The second one's are taken on `second`, where its group runs.
    fn take<'a>(
        cluster: &'a Cluster,
        clients: &[MountedClient],
        first: &Node,
        second: &Node,
    ) -> Result<Both<'a>> {
        let services = &cluster.services;
        Ok(Both {
            services,
            held: [
                Holdings::take(clients, 0, &services[0], first)?,
                Holdings::take(clients, 1, &services[1], second)?,
            ],
        })
    }

    fn robbed_by(&self, thief: &MountedClient) -> Result<[Busy; 2]> {
        let [first, second] = &self.held;
        Ok([
            first.slowly_robbed_by(thief, 0)?,
            second.slowly_robbed_by(thief, 1)?,
        ])
    }

    /// All of both are on this node, and the thief has got none.
    fn ensure_on(&self, node: &Node, robbing: [Busy; 2]) -> Result<()> {
        for robbing in robbing {
            ensure_nothing_stolen(robbing)?;
        }
        for (service, held) in self.services.iter().zip(&self.held) {
            held.ensure_on(service, node)?;
        }
        Ok(())
    }

    fn give_up(self, node: &Node) -> Result<()> {
        for (service, held) in self.services.iter().zip(self.held) {
            held.give_up(service, node)?;
        }
        Ok(())
    }
}

fn bad_days(context: &Context) -> Result<End> {
    let grouped = Grouped::new(context)?;
    let (cluster, groups) = (&grouped.cluster, &grouped.groups);
    let pacemaker = Pacemaker::start(cluster, groups, Fencing::No)?;
    let everyone = cluster.clients(3)?;
    let (clients, [thief]) = everyone.split_at(2) else {
        unreachable!("three clients were asked for");
    };
    let (from, to) = pacemaker.spread(&groups[0], &groups[1])?;
    let both = Both::take(cluster, clients, from, to)?;
    let ensure_on = |node: &Node, robbing: [Busy; 2]| -> Result<()> {
        for group in groups {
            pacemaker.ensure_on(group, node)?;
        }
        both.ensure_on(node, robbing)
            .with_context(|| pacemaker.logs())?;
        pacemaker.ensure_smooth()
    };

    // The monitor finds it; Pacemaker does the rest.
    let robbing = both.robbed_by(thief)?;
    let began = Instant::now();
    from.shell("rpc.nfsd 0")?;
    pacemaker.wait_taken_over(&groups[0], to)?;
    eprintln!("nfsd stopped: recovered in {:?}", began.elapsed());
    from.shell("rpc.nfsd --tcp --udp 4")?;
    pacemaker.act(&format!(
        "crm_resource --cleanup --resource {}",
        groups[0].id()
    ))?;
    ensure_on(to, robbing)?;

    // Pacemaker does not react to what is done by hand.
    let robbing = both.robbed_by(thief)?;
    pacemaker.maintenance(true)?;
    let before = pacemaker.actions()?;
    // Longer than a restart takes.
    to.node().write(NLM_GRACE_PERIOD, "90")?;
    let restart = ["restart", "--state-dir", STATE];
    to.tool().expect(exit::CONFIRMED, &restart)?;
    pacemaker.restart_on(to)?;
    pacemaker.maintenance(false)?;
    let after = pacemaker.actions()?;
    ensure!(
        after == before,
        "{after}\nwhere nothing was to follow on\n{before}"
    );
    ensure_on(to, robbing)?;

    let robbing = both.robbed_by(thief)?;
    let began = Instant::now();
    pacemaker.standby(to, true)?;
    eprintln!("standby: both moved in {:?}", began.elapsed());
    ensure_on(from, robbing)?;
    eprintln!("{}", pacemaker.logs());
    both.give_up(from)?;
    Ok(End::Pass)
}

fn stop_fails(context: &Context) -> Result<End> {
    let grouped = Grouped::new(context)?;
    let (cluster, groups) = (&grouped.cluster, &grouped.groups);
    let pacemaker = Pacemaker::start(cluster, groups, Fencing::Lab)?;
    let everyone = cluster.clients(4)?;
    let (clients, [thief, late]) = everyone.split_at(2) else {
        unreachable!("four clients were asked for");
    };
    let (from, to) = pacemaker.spread(&groups[0], &groups[1])?;
    pacemaker.move_to(&groups[1], from)?;
    let both = Both::take(cluster, clients, from, from)?;
    let robbing = both.robbed_by(thief)?;
    from.shell("kill -STOP $(pidof rpc.statd)")?;
    let late = user_of(late, 0, "late")?;
    wait_lockd_blocked(&from.tool())?;
    let began = Instant::now();
    let (id, to_name) = (groups[0].id(), to.name());
    to.shell(&format!(
        "crm_resource --move --resource {id} --node {to_name}"
    ))?;
    for group in groups {
        pacemaker.wait_taken_over(group, to)?;
    }
    eprintln!("fenced and taken over in {:?}", began.elapsed());
    eprintln!("{}", pacemaker.logs());
    ensure!(from.shell("true").is_err(), "{} is not off", from.name());
    // What failed there is known here, whichever node was in charge.
    let failed = format!("fail-count-{id}-takeover#stop_0[{}]", from.name());
    let log = to.shell(&format!(
        "grep -F '{failed}' /var/log/pacemaker/pacemaker.log || true"
    ))?;
    ensure!(log.contains("INFINITY"), "the stop has not failed: {log}");
    for tally in late.finish()? {
        // A server whose statd hangs cannot monitor a new client, and after some time says so.
        let is_refused = |failure: &String| failure.contains("ENOLCK");
        let is_well = tally.held > 0 && tally.failed.iter().all(is_refused);
        ensure!(is_well, "{tally:?}");
    }
    for group in groups {
        pacemaker.ensure_on(group, to)?;
    }
    both.ensure_on(to, robbing)?;
    both.give_up(to)?;
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
        let (cluster, mail, data) = on_a_cluster(&context.nlmfo, Own::documented)?;
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
        Users::start(
            &TestNode::root(),
            &self.mail,
            &self.data,
            &DOCUMENTED,
            Asks::OfItsOwn,
        )
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
    pacemaker.ensure_smooth()?;
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
    // The server continues to serve until its machine ends.
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
