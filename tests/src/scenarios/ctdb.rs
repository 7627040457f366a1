//! CTDB moves VIPs between two servers, with nlmfo's callout.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::{Context, End, Manager, Scenario};
use crate::cluster::ctdb::{Ctdb, callout};
use crate::cluster::holdings::{Holdings, ensure_nothing_stolen, ensure_unnoticed, user_of};
use crate::cluster::{Cluster, Node, STATE};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "ctdb",
    claim: "CTDB moves the VIPs of a node that is disabled, one by moveip, and that of a node that dies: every client keeps its locks, no other client gets one, and clients of another VIP are not affected",
    run: ctdb,
    manager: Some(Manager::Ctdb),
    only_full: Some("takes minutes"),
    ..Scenario::DEFAULT
}];

const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

fn ctdb(context: &Context) -> Result<End> {
    let cluster = Cluster::stopped(&context.nlmfo, &VIPS)?;
    let _state = cluster.share_state()?;
    let (a, b) = (&cluster.a, &cluster.b);
    let serve = ["serve", "--state-dir", STATE];
    let _serving = [a.tool().start(&serve)?, b.tool().start(&serve)?];
    let [moving, staying] = &cluster.services[..] else {
        unreachable!("two services were asked for");
    };
    cluster.record_nobody(|_, service| format!("{STATE}/ctdb-{}.json", service.vip))?;
    let ctdb = Ctdb::start(&cluster)?;
    // What CTDB asks for by itself: the kernel's callout does it.
    let registered = callout(a, "register")?;
    let operations: Vec<&str> = registered.lines().collect();
    for operation in ["takeip", "releaseip", "stop", "start", "monitor-post"] {
        ensure!(operations.contains(&operation), "{operations:?}");
    }
    callout(a, "stop mountd")?;
    callout(a, "start mountd")?;

    let everyone = cluster.clients(3)?;
    let (clients, [thief]) = everyone.split_at(2) else {
        unreachable!("three clients were asked for");
    };
    let mine = Holdings::take(clients, 0, moving, a)?;
    let others = Holdings::take(clients, 1, staying, a)?;
    let robbing = [mine.robbed_by(thief, 0)?, others.robbed_by(thief, 1)?];
    let ensure_on = |node: &Node, other: &Node| -> Result<()> {
        let moved = mine.ensure_on(moving, node);
        let stayed = moved.and_then(|()| others.ensure_on(staying, other));
        stayed.with_context(|| ctdb.logs())
    };

    let began = Instant::now();
    ctdb.run(a, "disable")?;
    for service in [moving, staying] {
        ctdb.wait_on(b, service)?;
    }
    eprintln!("a disabled node's addresses moved in {:?}", began.elapsed());
    ensure_on(b, b)?;
    ctdb.run(a, "enable")?;

    let working = user_of(&clients[0], 1, "work")?;
    let began = Instant::now();
    ctdb.move_to(moving, a)?;
    eprintln!("moveip took {:?}", began.elapsed());
    let slowest = ensure_unnoticed(working)?;
    eprintln!("slowest answer through another VIP {slowest:?}");
    ensure_on(a, b)?;

    // The leader, which has the cluster lock.
    let working = user_of(&clients[0], 1, "work")?;
    let began = Instant::now();
    a.kill()?;
    ctdb.wait_on(b, moving)?;
    eprintln!(
        "a dead node's address was taken over in {:?}",
        began.elapsed()
    );
    eprintln!("{}", ctdb.logs());
    let slowest = ensure_unnoticed(working)?;
    eprintln!("slowest answer through another VIP {slowest:?}");
    ensure_on(b, b)?;
    for robbing in robbing {
        ensure_nothing_stolen(robbing)?;
    }
    mine.give_up(moving, b)?;
    others.give_up(staying, b)?;
    Ok(End::Pass)
}
