//! Pacemaker moves VIPs between two servers, with nlmfo's OCF agents in the groups.

use std::time::Instant;

use anyhow::{Result, ensure};

use super::{Context, End, Manager, Scenario};
use crate::cluster::holdings::{Holdings, ensure_nothing_stolen, ensure_unnoticed, user_of};
use crate::cluster::pacemaker::{Agents, Pacemaker};
use crate::cluster::{Cluster, Node};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "pacemaker-move",
    claim: "Pacemaker moves a group with nlmfo's agents: every client keeps its locks, no other client gets one, and clients of another VIP are not affected",
    run: moved,
    manager: Some(Manager::Pacemaker),
    only_full: Some("four minutes of processor time"),
    ..Scenario::DEFAULT
}];

const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

fn moved(context: &Context) -> Result<End> {
    let cluster = Cluster::stopped(&context.nlmfo, &VIPS)?;
    let _state = cluster.share_state()?;
    let pacemaker = Pacemaker::start(&cluster, Agents::Nlmfo)?;
    let everyone = cluster.clients(3)?;
    let (clients, [thief]) = everyone.split_at(2) else {
        unreachable!("three clients were asked for");
    };
    let [moving, staying] = &cluster.services[..] else {
        unreachable!("two services were asked for");
    };
    let (from, to) = nodes(&cluster, &pacemaker)?;
    let mine = Holdings::take(clients, 0, moving, from)?;
    let others = Holdings::take(clients, 1, staying, to)?;
    let robbing = mine.robbed_by(thief, 0)?;
    let working = user_of(&clients[0], 1, "work")?;
    let began = Instant::now();
    pacemaker.move_to(moving, to)?;
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

/// The node of the first service, then that of the second. Pacemaker spreads them, unless a node
/// joined when both had started.
fn nodes<'a>(cluster: &'a Cluster, pacemaker: &Pacemaker<'_>) -> Result<(&'a Node, &'a Node)> {
    let [first, second] = [0, 1].map(|number| pacemaker.node_of(&cluster.services[number]));
    let is_on_a = |node: Option<&Node>| node.is_some_and(|node| node.name() == cluster.a.name());
    let first_on_a = is_on_a(first?);
    let (here, there) = match first_on_a {
        true => (&cluster.a, &cluster.b),
        false => (&cluster.b, &cluster.a),
    };
    if is_on_a(second?) == first_on_a {
        pacemaker.move_to(&cluster.services[1], there)?;
    }
    Ok((here, there))
}
