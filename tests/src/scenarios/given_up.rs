//! Locks that their clients give up while no server answers: nobody will reclaim them, and nobody
//! needs to wait for them.

use std::fs;
use std::process::Command;
use std::thread::{self, Scope, ScopedJoinHandle};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{Context, End, Scenario};
use crate::guest::client::{Client, HeldLock};
use crate::guest::command::run;
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
        claim: "locks that clients of NFSv3, 4.0 and 4.1 give up while the server is stopped are not waited for, and not missing; \
                those of a file that was deleted meanwhile, or of an export that refuses the client, are missing",
        run: restart,
        ..Scenario::DEFAULT
    },
];

/// A grace of this length that is over was ended early.
const LONG_GRACE: &str = "90";

const SOON_MS: f64 = 60_000.0;

/// 4.0 clients say what they give up by LOCKU, the others that they have reclaimed all else.
const MINORS: [u8; 2] = [0, 1];

/// A server with one client, which holds two locks.
fn two_locks() -> Result<(Lab, HeldLock, HeldLock)> {
    let lab = Lab::up(&["10.77.0.1"], 1)?;
    let client = &lab.clients[0];
    let lock =
        |file: &str| (client.client).lock(&client.mounts[0], file, Range::new(3, 7), Mode::Write);
    let (kept, given_up) = (lock("kept")?, lock("given-up")?);
    Ok((lab, kept, given_up))
}

/// The client gives the lock up, which ends once the server has answered; its file stays open.
fn give_up<'s>(
    scope: &'s Scope<'s, '_>,
    lock: HeldLock,
) -> Result<ScopedJoinHandle<'s, Result<HeldLock>>> {
    let holder = lock.locker().id().to_string();
    let unlocking = scope.spawn(move || lock.unlock().map(|()| lock));
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
        ensure!(
            vip["expected"] == 2
                && vip["missing"] == json!([])
                && report["took_ms"].as_f64() < Some(SOON_MS),
            "{report}"
        );
        ensure_only(&vip["given_up"], "given-up")?;
        unlocking.join().expect("no panic").map(|_| ())
    })?;
    ensure!(lab.server.locks()?.len() == 1, "{:?}", lab.server.locks()?);
    Ok(End::Pass)
}

fn restart(context: &Context) -> Result<End> {
    let (lab, _kept, lock) = two_locks()?;
    run(Command::new("modprobe").arg("nfsv4"))?;
    let (mut clients, mut held, mut given_up) = (Vec::new(), Vec::new(), vec![lock]);
    for minor in MINORS {
        let client = Client::join(&lab.server, 2 + minor)?;
        let mount = client.mount_nfs4(&lab.server, lab.vips[0], minor)?;
        let lock = |file: String| client.lock(&mount, &file, Range::new(3, 7), Mode::Write);
        held.push(lock(format!("kept-{minor}"))?);
        given_up.push(lock(format!("given-up-{minor}"))?);
        clients.push((client, mount));
    }
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    (lab.server.node()).write(NLM_GRACE_PERIOD, LONG_GRACE)?;
    tool.expect(exit::CONFIRMED, &["restart", "--stop-only"])?;
    thread::scope(|scope| {
        let unlocking = given_up.into_iter().map(|lock| give_up(scope, lock));
        let unlocking = unlocking.collect::<Result<Vec<_>>>()?;
        let report = tool.json(exit::CONFIRMED, &["restart", "--start-only"])?;
        let start = &report["start"];
        let missing = &start["missing"];
        ensure!(
            // Two locks of NFSv3; an open and a lock on each file of NFSv4.
            start["expected"] == 2 + 4 * MINORS.len()
                && start["ended"] == "early"
                && start["took_ms"].as_f64() < Some(SOON_MS)
                && ["locks", "nfs4"]
                    .iter()
                    .all(|kind| missing[kind] == json!([])),
            "{report}"
        );
        ensure_only(&start["given_up"]["locks"], "given-up")?;
        for minor in MINORS {
            let all = start["given_up"]["nfs4"].as_array().context("no list")?;
            let of_minor = all.iter().filter(|line| line["minor"] == minor);
            let of_minor: Value = of_minor.cloned().collect();
            ensure_only(&of_minor, &format!("given-up-{minor}"))?;
        }
        for thread in unlocking {
            thread.join().expect("no panic")?;
        }
        Ok(())
    })?;
    let kept = 1 + MINORS.len();
    ensure!(
        lab.server.locks()?.len() == kept,
        "{:?}",
        lab.server.locks()?
    );

    // A 4.1 client has reclaimed all that it can, and did not give up the rest.
    tool.expect(exit::CONFIRMED, &["restart", "--stop-only"])?;
    fs::remove_file(lab.server.export().join("kept-1"))?;
    let report = tool.json(exit::INCOMPLETE, &["restart", "--start-only"])?;
    let start = &report["start"];
    let missing = start["missing"]["nfs4"].as_array().context("no list")?;
    ensure!(
        missing.len() == 2
            && missing
                .iter()
                .all(|line| line["file"]["path"] == "/export/kept-1")
            && start["given_up"]["nfs4"] == json!([]),
        "{report}"
    );

    // Nor what an export of another security flavour keeps from it.
    held.remove(0).release()?;
    let (client, mount) = clients.last().context("no client")?;
    let _of_sys = client.lock(mount, "of-sys", Range::new(3, 7), Mode::Write)?;
    tool.expect(exit::CONFIRMED, &["restart", "--stop-only"])?;
    let export = lab.server.export().display().to_string();
    let krb5 = [
        "-o",
        "rw,no_subtree_check,sec=krb5,fsid=1",
        &format!("*:{export}"),
    ];
    run(lab.server.node().command("exportfs").args(krb5))?;
    let report = tool.json(exit::INCOMPLETE, &["restart", "--start-only"])?;
    let start = &report["start"];
    let missing = start["missing"]["nfs4"].as_array().context("no list")?;
    let path = format!("{export}/of-sys");
    ensure!(
        missing.iter().any(|line| line["file"]["path"] == *path)
            && start["given_up"]["nfs4"] == json!([]),
        "{report}"
    );
    Ok(End::Pass)
}

/// There is one line, which is of this file.
fn ensure_only(lines: &Value, file: &str) -> Result<()> {
    let lines = lines.as_array().context("no list")?;
    let path = format!("/export/{file}");
    let is_of_file = |line: &Value| line["file"]["path"] == path;
    ensure!(
        lines.len() == 1 && lines.iter().all(is_of_file),
        "{file}: {lines:?}"
    );
    Ok(())
}
