//! Locks that their clients give up while no server answers: nobody will reclaim them, and nobody
//! needs to wait for them.

use std::fs;
use std::thread::{self, Scope, ScopedJoinHandle};

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{Context, End, Scenario};
use crate::guest::client::HeldLock;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::server::NLM_GRACE_PERIOD;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "given-up-takeover",
        claim: "a lock that its client gives up between release and takeover is not waited for, and not missing",
        run: takeover,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "given-up-restart",
        claim: "a lock that its client gives up while the server is stopped is not waited for, and not missing",
        run: restart,
        ..Scenario::DEFAULT
    },
];

/// A grace of this length that is over was ended early.
const LONG_GRACE: &str = "90";

const SOON_MS: f64 = 60_000.0;

/// A server with one client, which holds two locks.
fn two_locks() -> Result<(Lab, HeldLock, HeldLock)> {
    let lab = Lab::up(&["10.77.0.1"], 1)?;
    let client = &lab.clients[0];
    let lock =
        |file: &str| (client.client).lock(&client.mounts[0], file, Range::new(3, 7), Mode::Write);
    let (kept, given_up) = (lock("kept")?, lock("given-up")?);
    Ok((lab, kept, given_up))
}

/// The client gives the lock up, which ends once the server has answered.
fn give_up<'s>(
    scope: &'s Scope<'s, '_>,
    lock: HeldLock,
) -> Result<ScopedJoinHandle<'s, Result<()>>> {
    let holder = lock.locker().id().to_string();
    let unlocking = scope.spawn(move || lock.release());
    until("the client to drop its lock", || {
        let locks = fs::read_to_string("/proc/locks")?;
        let mut lines = locks.lines();
        Ok(
            match lines.find(|line| line.split(' ').any(|word| word == holder)) {
                None => Seen::Yes(()),
                Some(line) => Seen::No(line.to_owned()),
            },
        )
    })?;
    Ok(unlocking)
}

fn ensure_given_up(place: &Value, given_up: &Value, missing: &Value) -> Result<()> {
    ensure!(
        place["expected"] == 2
            && given_up.as_array().map_or(0, Vec::len) == 1
            && given_up[0]["file"]["path"] == "/export/given-up"
            && missing.as_array().is_some_and(Vec::is_empty),
        "{place}"
    );
    Ok(())
}

fn takeover(context: &Context) -> Result<End> {
    const RECORD: &str = "/tmp/record.json";
    let (lab, _kept, lock) = two_locks()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let failover = ["failover", "--vip", "10.77.0.1", "--phase"];
    let release = ["release", "--record", RECORD];
    let takeover = ["takeover", "--expect", RECORD, "--grace", "90s"];
    tool.expect(exit::CONFIRMED, &[&failover[..], &release].concat())?;
    thread::scope(|scope| {
        let unlocking = give_up(scope, lock)?;
        let report = tool.json(exit::CONFIRMED, &[&failover[..], &takeover].concat())?;
        let vip = &report["vips"][0];
        ensure_given_up(vip, &vip["given_up"], &vip["missing"])?;
        ensure!(report["took_ms"].as_f64() < Some(SOON_MS), "{report}");
        unlocking.join().expect("no panic")
    })?;
    ensure!(lab.server.locks()?.len() == 1, "{:?}", lab.server.locks()?);
    Ok(End::Pass)
}

fn restart(context: &Context) -> Result<End> {
    let (lab, _kept, lock) = two_locks()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    (lab.server.node()).write(NLM_GRACE_PERIOD, LONG_GRACE)?;
    tool.expect(exit::CONFIRMED, &["restart", "--stop-only"])?;
    thread::scope(|scope| {
        let unlocking = give_up(scope, lock)?;
        let report = tool.json(exit::CONFIRMED, &["restart", "--start-only"])?;
        let start = &report["start"];
        ensure_given_up(
            start,
            &start["given_up"]["locks"],
            &start["missing"]["locks"],
        )?;
        ensure!(
            start["ended"] == "early" && start["took_ms"].as_f64() < Some(SOON_MS),
            "{report}"
        );
        unlocking.join().expect("no panic")
    })?;
    ensure!(lab.server.locks()?.len() == 1, "{:?}", lab.server.locks()?);
    Ok(End::Pass)
}
