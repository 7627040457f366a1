//! A VIP and its filesystem move from one server to another.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::{Context, End, Scenario};
use crate::cluster::handover::Handover;
use crate::cluster::{Cluster, Node};
use crate::guest::busy::{Busy, Wanted};
use crate::guest::client::HeldLock;
use crate::guest::known::{Known, ensure_kernel_holds, ensure_same};
use crate::guest::lab::MountedClient;
use crate::guest::locker::{Mode, Range};
use crate::guest::report;
use crate::guest::tool::exit;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "two-nodes-planned",
    claim: "a VIP moves to another server and back: every lock stays its client's, no thief gets one, who uses another VIP does not notice",
    run: planned,
}];

const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// What a user of another VIP may wait for an answer. Grace for the whole node would be
/// longer: lockd's is 50 s, and clients ask again every 5 s.
const UNNOTICED: Duration = Duration::from_secs(4);

/// The locks of each client through each VIP: file, range, mode. Readers share; the others
/// keep to a range of their own.
fn locks_of(client: u64) -> Vec<(String, Range, Mode)> {
    vec![
        ("shared".into(), Range::new(0, 100), Mode::Read),
        ("shared".into(), Range::new(1000 * client, 10), Mode::Write),
        (format!("own-{client}"), Range::WHOLE, Mode::Write),
        (format!("tail-{client}"), Range::new(1 << 33, 0), Mode::Read),
    ]
}

/// The clients' locks through every VIP.
struct Holdings {
    held: Vec<HeldLock>,
    wanted: Vec<Wanted>,
}

fn hold(clients: &[MountedClient], service: usize, thief: &MountedClient) -> Result<Holdings> {
    let mut held = Vec::new();
    let mut wanted = Vec::new();
    for (number, owner) in (1..).zip(clients) {
        for (file, range, mode) in locks_of(number) {
            let lock = (owner.client).lock(&owner.mounts[service], &file, range, mode)?;
            held.push(lock);
            wanted.push(Wanted {
                file: thief.mounts[service].path(&file),
                range,
                mode: Mode::Write,
            });
        }
    }
    Ok(Holdings { held, wanted })
}

/// What the tool shows on this node.
fn listed(node: &Node) -> Result<BTreeSet<Known>> {
    report::known(&node.tool().json(exit::CONFIRMED, &["locks"])?, "locks")
}

fn of_vip(locks: &BTreeSet<Known>, vip: IpAddr) -> BTreeSet<Known> {
    let through = locks.iter().filter(|lock| lock.vip == vip);
    through.cloned().collect()
}

fn planned(context: &Context) -> Result<End> {
    let cluster = Cluster::up(&context.nlmfo, &VIPS)?;
    let everyone = cluster.clients(4)?;
    let (clients, [thief]) = everyone.split_at(3) else {
        unreachable!("four clients were asked for");
    };
    let [moving, staying] = &cluster.services[..] else {
        unreachable!("two services were asked for");
    };
    let mine = hold(clients, 0, thief)?;
    let others = hold(clients, 1, thief)?;
    let before = listed(&cluster.a)?;
    ensure!(
        before.len() == mine.held.len() + others.held.len(),
        "{before:#?}"
    );
    let (moved, stayed) = (of_vip(&before, moving.vip), of_vip(&before, staying.vip));

    let addresses: Vec<IpAddr> = clients
        .iter()
        .map(|owner| owner.client.address_for(moving.vip))
        .collect();
    for (state, from, to) in [(101, &cluster.a, &cluster.b), (103, &cluster.b, &cluster.a)] {
        let robbing = thief.client.busy(&mine.wanted)?;
        let working = clients[0].client.busy(&[Wanted {
            file: clients[0].mounts[1].path("work"),
            range: Range::new(7, 3),
            mode: Mode::Write,
        }])?;
        let handover = Handover {
            service: moving,
            from,
            to,
            clients: &addresses,
            state,
        };
        let done = handover.run()?;
        let vip = &done.taken["vips"][0];
        ensure!(
            vip["expected"] == moved.len()
                && vip["missing"].as_array().is_some_and(Vec::is_empty)
                && vip["window"]["lockd"]["violations"] == 0,
            "{}",
            done.taken
        );
        ensure_nothing_stolen(robbing)?;
        let slowest = ensure_unnoticed(working)?;
        eprintln!(
            "{} to {}: {:?}, all back after {} ms; slowest answer through another VIP {slowest:?}",
            from.name(),
            to.name(),
            done.took,
            vip["all_back_ms"]
        );

        let now = listed(to)?;
        ensure_same("the locks that moved", &moved, &of_vip(&now, moving.vip))?;
        ensure_kernel_holds(&moving.locks(to)?, &moved)?;
        let there = listed(&cluster.a)?;
        ensure_same("the locks that stay", &stayed, &of_vip(&there, staying.vip))?;
        ensure_kernel_holds(&staying.locks(&cluster.a)?, &stayed)?;
        let left = of_vip(&listed(from)?, moving.vip);
        ensure!(left.is_empty(), "left on {}: {left:#?}", from.name());
    }

    // Held by the very owners that took them: they alone can give them up.
    for lock in mine.held.into_iter().chain(others.held) {
        lock.release()?;
    }
    let left = listed(&cluster.a)?;
    ensure!(left.is_empty(), "given up by all, yet held: {left:#?}");
    Ok(End::Pass)
}

/// The thief has asked for every lock, and got none.
fn ensure_nothing_stolen(thief: Busy) -> Result<()> {
    for tally in thief.finish()? {
        ensure!(tally.held == 0, "stolen: {tally:?}");
        ensure!(tally.refused > 0, "the thief did not get to ask: {tally:?}");
    }
    Ok(())
}

/// A user has got every lock that it asked for, in time; returns the longest time.
fn ensure_unnoticed(user: Busy) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for tally in user.finish()? {
        ensure!(
            tally.held > 0 && tally.refused == 0 && tally.failed.is_empty(),
            "another VIP's user: {tally:?}"
        );
        ensure!(
            tally.slowest <= UNNOTICED,
            "another VIP's user waited too long: {tally:?}"
        );
        slowest = slowest.max(tally.slowest);
    }
    Ok(slowest)
}
