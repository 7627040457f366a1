//! A VIP and its filesystem move from one server to another.

use std::net::IpAddr;
use std::path::Path;
use std::thread;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{Context, End, Scenario};
use crate::cluster::handover::{Handover, RECORD, words};
use crate::cluster::holdings::{Holdings, ensure_nothing_stolen, ensure_unnoticed, user_of};
use crate::cluster::killed::Step;
use crate::cluster::{Cluster, Node, STATE};
use crate::emulation::RECLAIMED;
use crate::guest::lab::MountedClient;
use crate::guest::locker::{Mode, Outcome, Range};
use crate::guest::node::TestNode;
use crate::guest::tool::exit;
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "two-nodes-planned",
        claim: "an IPv6 VIP moves to another server and back: every client keeps its locks, no other client gets one, and clients of another VIP are not affected",
        run: planned,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "two-nodes-crash",
        claim: "a node dies: the other takes over its VIPs with the client book alone, and every client reclaims its locks",
        run: crash,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "two-nodes-dead-client",
        claim: "a client that is down during the takeover is reported, delays no other client, and works when it is back",
        run: dead_client,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "two-nodes-killed-command",
        claim: "a failover that is killed at any step completes when it is run again",
        run: killed_command,
        ..Scenario::DEFAULT
    },
];

const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
/// The one that moves is an IPv6 address.
const VIPS_OF_BOTH_FAMILIES: [&str; 2] = ["fd77::1", "10.77.0.2"];

/// Waits until the book names each of these clients of the VIP, as this node reads it.
fn wait_for_book(node: &Node, vip: IpAddr, clients: &[MountedClient]) -> Result<()> {
    let vip_text = vip.to_string();
    let ask = [
        "clients",
        "--book",
        "--vip",
        &vip_text,
        "--state-dir",
        STATE,
    ];
    until(&format!("the clients of {vip} in the book"), || {
        let book = node.tool().json(exit::CONFIRMED, &ask)?.to_string();
        let is_there = |owner: &MountedClient| {
            book.contains(&format!("\"{}\"", owner.client.address_for(vip)))
        };
        Ok(match clients.iter().all(is_there) {
            true => Seen::Yes(()),
            false => Seen::No(book),
        })
    })
}

fn planned(context: &Context) -> Result<End> {
    let cluster = Cluster::up(&context.nlmfo, &VIPS_OF_BOTH_FAMILIES)?;
    let everyone = cluster.clients(4)?;
    let (clients, [thief]) = everyone.split_at(3) else {
        unreachable!("four clients were asked for");
    };
    let [moving, staying] = &cluster.services[..] else {
        unreachable!("two services were asked for");
    };
    let mine = Holdings::take(clients, 0, moving, &cluster.a)?;
    let others = Holdings::take(clients, 1, staying, &cluster.a)?;
    for (from, to) in [(&cluster.a, &cluster.b), (&cluster.b, &cluster.a)] {
        let robbing = mine.robbed_by(thief, 0)?;
        let working = user_of(&clients[0], 1, "work")?;
        let handover = Handover {
            service: moving,
            from,
            to,
        };
        // There by the two phases, back by the command that drives both nodes.
        let done = match to.name() {
            "b" => handover.run()?,
            _ => handover.run_in_one()?,
        };
        let vip = &done.taken["vips"][0];
        ensure!(
            vip["expected"] == mine.known.len()
                && vip["missing"].as_array().is_some_and(Vec::is_empty)
                && vip["window"]["lockd"]["violations"] == 0,
            "{}",
            done.taken
        );
        let has_path = |lock: &Value| {
            let path = lock["file"]["path"].as_str();
            path.is_some_and(|path| Path::new(path).starts_with(moving.folder()))
        };
        ensure!(
            vip["held"]
                .as_array()
                .is_some_and(|held| held.iter().all(has_path)),
            "files without a name: {}",
            done.taken
        );
        let stood_still = ensure_nothing_stolen(robbing)?;
        let slowest = ensure_unnoticed(working)?;
        eprintln!(
            "{} to {}: {:?}, all back after {} ms; slowest answer through the VIP {stood_still:?}, \
             through another one {slowest:?}",
            from.name(),
            to.name(),
            done.took,
            vip["reclaimed_after_ms"]
        );
        mine.ensure_on(moving, to)?;
        others.ensure_on(staying, &cluster.a)?;
    }
    mine.give_up(moving, &cluster.a)?;
    others.give_up(staying, &cluster.a)?;
    Ok(End::Pass)
}

fn crash(context: &Context) -> Result<End> {
    let cluster = Cluster::up(&context.nlmfo, &VIPS)?;
    let everyone = cluster.clients(3)?;
    let (clients, [thief]) = everyone.split_at(2) else {
        unreachable!("three clients were asked for");
    };
    let _state = cluster.share_state()?;
    let _serving = cluster.a.tool().start(&["serve", "--state-dir", STATE])?;
    let mut holdings = Vec::new();
    let mut robbing = Vec::new();
    for (mount, service) in cluster.services.iter().enumerate() {
        let taken = Holdings::take(clients, mount, service, &cluster.a)?;
        robbing.push(taken.robbed_by(thief, mount)?);
        holdings.push(taken);
    }
    let b = &cluster.b;
    for service in &cluster.services {
        wait_for_book(b, service.vip, clients)?;
    }
    cluster.a.kill()?;

    let program = b.notifier(&format!("--state-dir {STATE}"))?;
    // The book knows the clients, not their locks: grace lasts for its whole time.
    let takeover = [
        "failover",
        "--phase",
        "takeover",
        "--vip",
        VIPS[0],
        "--vip",
        VIPS[1],
        "--grace",
        "30s",
        "--wait-address",
        "30s",
        "--notify",
        program,
    ];
    let taken = thread::scope(|scope| {
        let takeover = scope.spawn(|| b.tool().json(exit::CONFIRMED, &takeover));
        for service in &cluster.services {
            b.wait_for_grace(service.vip)?;
            service.start(b)?;
        }
        takeover.join().expect("running nlmfo does not panic")
    })?;
    for thief in robbing {
        ensure_nothing_stolen(thief)?;
    }
    for (service, theirs) in cluster.services.iter().zip(holdings) {
        let reports = taken["vips"].as_array().into_iter().flatten();
        let is_clean = |report: &Value| {
            report["vip"] == service.vip.to_string()
                && report["notified"]["done"] == true
                && report["window"]["lockd"]["violations"] == 0
        };
        ensure!(
            reports.filter(|report| is_clean(report)).count() == 1,
            "{taken}"
        );
        theirs.ensure_on(service, b)?;
        theirs.give_up(service, b)?;
    }
    Ok(End::Pass)
}

fn dead_client(context: &Context) -> Result<End> {
    let cluster = Cluster::up(&context.nlmfo, &VIPS[..1])?;
    let clients = cluster.clients(3)?;
    let (living, [dead]) = clients.split_at(2) else {
        unreachable!("three clients were asked for");
    };
    let service = &cluster.services[0];
    let theirs = Holdings::take(living, 0, service, &cluster.a)?;
    let lost = dead.lock("lost", Range::WHOLE)?;
    let driver = TestNode::root();
    driver.ip("link set vc3 down\n")?;

    let handover = Handover {
        service,
        from: &cluster.a,
        to: &cluster.b,
    };
    handover.release()?;
    let taken = handover.take_over(exit::INCOMPLETE, &["--grace", "30s"], || {
        service.stop(&cluster.a)?;
        service.start(&cluster.b)?;
        let up = Instant::now();
        until("the living clients' locks on b", || {
            let held = service.locks(&cluster.b)?.len();
            Ok(match held == theirs.known.len() {
                true => Seen::Yes(()),
                false => Seen::No(format!("{held} locks")),
            })
        })?;
        let took = up.elapsed();
        ensure!(
            took < RECLAIMED,
            "the living had their locks after {took:?}"
        );
        Ok(())
    })?;
    let vip = &taken["vips"][0];
    let missing = vip["missing"].as_array().map_or(&[][..], Vec::as_slice);
    let is_named =
        |lock: &Value| lock["client"] == dead.client.address_for(service.vip).to_string();
    ensure!(
        missing.len() == 1 && is_named(&missing[0]) && vip["window"]["lockd"]["violations"] == 0,
        "{taken}"
    );
    theirs.ensure_on(service, &cluster.b)?;

    driver.ip("link set vc3 up\n")?;
    // It knows nothing of all this; the server no longer knows its lock.
    lost.release()?;
    let again = dead.lock("lost", Range::WHOLE)?;
    let rival = living[0].client.locker()?;
    let refused = rival.lock(&living[0].mounts[0].path("lost"), Range::WHOLE, Mode::Write)?;
    ensure!(refused == Outcome::Refused, "a rival's lock: {refused:?}");
    again.release()?;
    theirs.give_up(service, &cluster.b)?;
    Ok(End::Pass)
}

fn killed_command(context: &Context) -> Result<End> {
    let cluster = Cluster::up(&context.nlmfo, &VIPS[..1])?;
    let everyone = cluster.clients(3)?;
    let (clients, [thief]) = everyone.split_at(2) else {
        unreachable!("three clients were asked for");
    };
    let service = &cluster.services[0];
    let mine = Holdings::take(clients, 0, service, &cluster.a)?;
    let robbing = mine.robbed_by(thief, 0)?;
    let handover = Handover {
        service,
        from: &cluster.a,
        to: &cluster.b,
    };

    let mut release = handover.release_command();
    // For all four runs, however slow the machine is.
    release.extend(["--fence", "300s"].map(String::from));
    for step in [
        Step::gate_loaded(),
        Step::file_there(RECORD),
        Step::locks_gone(service),
    ] {
        cluster.a.kill_at(&step, &release)?;
    }
    handover.release()?;

    let told = "/tmp/told";
    let program = handover.notifier()?;
    let takeover = handover.takeover_command(program);
    cluster.b.kill_at(&Step::grace_open(), &takeover)?;
    service.stop(&cluster.a)?;
    service.start(&cluster.b)?;
    // As the program, but says that it was there.
    let marking = format!("#!/bin/sh\n{program} \"$@\"; status=$?; touch {told}; exit $status\n");
    cluster.b.node().write_program("/tmp/marking", &marking)?;
    let marked = handover.takeover_command("/tmp/marking");
    cluster.b.kill_at(&Step::file_there(told), &marked)?;
    let taken = cluster.b.tool().json(exit::CONFIRMED, &words(&takeover))?;
    let vip = &taken["vips"][0];
    ensure!(
        vip["expected"] == mine.known.len()
            && vip["missing"].as_array().is_some_and(Vec::is_empty)
            && vip["window"]["lockd"]["violations"] == 0,
        "{taken}"
    );
    ensure_nothing_stolen(robbing)?;
    mine.ensure_on(service, &cluster.b)?;
    for node in [&cluster.a, &cluster.b] {
        node.wait_gate_gone()?;
    }
    mine.give_up(service, &cluster.b)?;
    Ok(End::Pass)
}
