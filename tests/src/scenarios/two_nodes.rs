//! A VIP and its filesystem move from one server to another.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Context, End, Scenario};
use crate::cluster::service::Service;
use crate::cluster::{Cluster, Node};
use crate::guest::locker::{Mode, Outcome, Range};
use crate::guest::reboot;
use crate::guest::tool::exit;
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "two-nodes",
    claim: "a lock moves with its VIP to another server: released there, reclaimed here, held throughout",
    run: one_lock,
}];

const VIP: &str = "10.77.0.1";
const RECORD: &str = "/tmp/record.json";
/// NSM's: another number than any client has seen, and odd.
const STATE: u32 = 4711;

fn one_lock(context: &Context) -> Result<End> {
    let cluster = Cluster::up(&context.nlmfo, &[VIP])?;
    let clients = cluster.clients(2)?;
    let [owner, rival] = &clients[..] else {
        unreachable!("two clients were asked for");
    };
    let held = owner.lock("held", Range::new(5, 10))?;
    let service = &cluster.services[0];
    let before = service.locks(&cluster.a)?;
    ensure!(before.len() == 1, "{before:?}");

    let address = owner.client.address_for(service.vip);
    let report = fail_over(service, &cluster.a, &cluster.b, &[address])?;
    let vip = &report["vips"][0];
    ensure!(
        vip["expected"] == 1 && vip["missing"].as_array().is_some_and(Vec::is_empty),
        "{report}"
    );
    let after = service.locks(&cluster.b)?;
    ensure!(
        after.len() == 1
            && (after[0].inode, after[0].start, after[0].end)
                == (before[0].inode, before[0].start, before[0].end),
        "held on a: {before:?}, on b: {after:?}"
    );
    let listed = cluster.b.tool().json(exit::CONFIRMED, &["locks"])?;
    ensure!(
        listed["locks"][0]["vip"] == VIP && listed["locks"][0]["client"] == address.to_string(),
        "{listed}"
    );
    let thief = rival.client.locker()?;
    let path = rival.mounts[0].path("held");
    let refused = thief.lock(&path, Range::new(14, 1), Mode::Write)?;
    ensure!(refused == Outcome::Refused, "a rival's lock: {refused:?}");
    held.release()?;
    let granted = thief.lock(&path, Range::new(14, 1), Mode::Write)?;
    ensure!(granted == Outcome::Held, "once it is free: {granted:?}");
    Ok(End::Pass)
}

/// Moves a service by hand, with the tool's two phases, and returns the takeover's report.
fn fail_over(service: &Service, from: &Node, to: &Node, clients: &[IpAddr]) -> Result<Value> {
    let vip = service.vip.to_string();
    let release = [
        "failover", "--vip", &vip, "--phase", "release", "--record", RECORD,
    ];
    from.tool().json(exit::CONFIRMED, &release)?;
    to.place().write(RECORD, &from.place().read(RECORD)?)?;
    let program = reboot::program(to.place(), clients, STATE)?;
    let takeover = [
        "failover",
        "--vip",
        &vip,
        "--phase",
        "takeover",
        "--expect",
        RECORD,
        "--wait-address",
        "60s",
        "--notify",
        program,
    ];
    std::thread::scope(|scope| {
        let takeover = scope.spawn(|| to.tool().json(exit::CONFIRMED, &takeover));
        until("the VIP's grace", || {
            let listed = to.tool().json(exit::CONFIRMED, &["grace", "--list"])?;
            let windows = listed["windows"].as_array();
            Ok(match windows.is_some_and(|list| !list.is_empty()) {
                true => Seen::Yes(()),
                false => Seen::No(listed.to_string()),
            })
        })?;
        service.stop(from)?;
        service.start(to)?;
        takeover.join().expect("running nlmfo does not panic")
    })
    .context("takeover")
}
