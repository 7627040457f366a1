//! Failovers of several VIPs at the same time.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Context, End, Kernels, Scenario};
use crate::guest::command::{Finished, finish, finish_within};
use crate::guest::lab::Lab;
use crate::guest::load::{self, Holding, Monitoring};
use crate::guest::raw::RawNet;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until, until_for};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "parallel-moves",
        claim: "VIPs that several processes move at once keep their locks, each by its own run",
        run: moves,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "parallel-beside-grace",
        claim: "a long takeover does not delay that of another VIP, and only root can delay any",
        run: beside_grace,
        kernels: Kernels::One(
            "locks and lock files are nlmfo's own; parallel-moves has both release methods",
        ),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "parallel-one-vip",
        claim: "two releases and two takeovers of one VIP at once come to the same as one; a takeover that waited and is refused leaves no window",
        run: one_vip,
        kernels: Kernels::One("locks and lock files are nlmfo's own"),
        ..Scenario::DEFAULT
    },
];

/// IPv4 VIPs, and as many IPv6 ones. Ten make twenty processes that load programs at once:
/// an emulated machine takes many minutes for them.
fn vips_each(full: bool) -> usize {
    match full {
        true => 10,
        false => 2,
    }
}

const LOCKS: u32 = 10;

/// Processes that load programs make an emulated machine slow.
const LIMIT: Duration = Duration::from_mins(10);

/// The site's program that tells clients: it leaves a file with the VIP's name.
const TELL: &str = "/tmp/tell";
const TOLD: &str = "/tmp/told";

fn moves(context: &Context) -> Result<End> {
    let vips: Vec<String> = (1..=vips_each(context.full))
        .flat_map(|n| [format!("10.77.0.{n}"), format!("fd77::{n}")])
        .collect();
    let vips: Vec<&str> = vips.iter().map(String::as_str).collect();
    let lab = Lab::up(&vips, 0)?;
    let node = lab.server.node();
    let tool = Tool::new(&context.nlmfo, node);
    let net = RawNet::join(&lab.server)?;
    let names: Vec<String> = (0..7).map(|n| format!("file-{n}")).collect();
    let files = net.files(&lab.server, lab.vips[0], &names)?;
    let holding = Holding {
        vips: &lab.vips,
        clients: 1,
        locks: LOCKS,
        monitoring: Monitoring::Unmonitored,
    };
    load::hold(&net, &files, holding)?;
    let before = lab.server.locks()?;
    ensure!(
        before.len() == vips.len() * LOCKS as usize,
        "{} locks",
        before.len()
    );
    fs::create_dir_all(TOLD)?;
    node.write_program(TELL, &format!("#!/bin/sh\n: > {TOLD}/$1\n"))?;

    let began = Instant::now();
    let finished = thread::scope(|scope| {
        let running: Vec<_> = (vips.iter().enumerate())
            .map(|(nth, vip)| {
                let (tool, net, files) = (&tool, &net, &files);
                let client = scope.spawn(move || {
                    until_for(LIMIT, &format!("the clients of {vip} to be told"), || {
                        Ok(match Path::new(TOLD).join(vip).exists() {
                            true => Seen::Yes(()),
                            false => Seen::No("they are not".into()),
                        })
                    })?;
                    load::reclaim(net, files, holding, nth, 1)
                });
                let failover = scope.spawn(move || {
                    // Emulated machines are slow: these are no expectations.
                    let arguments = [
                        "failover",
                        "--vip",
                        vip,
                        "--deadline",
                        "300",
                        "--fence",
                        "600s",
                        "--grace",
                        "300s",
                        "--notify",
                        TELL,
                        "--json",
                    ];
                    finish_within(LIMIT, &mut tool.command(&arguments), "")
                });
                (failover, client)
            })
            .collect();
        running
            .into_iter()
            .map(|(failover, client)| {
                let finished = failover.join().expect("no panic");
                (finished, client.join().expect("no panic"))
            })
            .collect::<Vec<_>>()
    });
    for (vip, (finished, client)) in vips.iter().zip(finished) {
        moved(&finished?).with_context(|| format!("the move of {vip}"))?;
        client.with_context(|| format!("the client of {vip}"))?;
    }
    ensure!(lab.server.locks()? == before, "other locks than before");
    eprintln!("{} VIPs moved in {:?}", vips.len(), began.elapsed());
    Ok(End::Pass)
}

/// Both phases were confirmed, of all locks of the VIP and of no others.
fn moved(finished: &Finished) -> Result<()> {
    ensure!(
        finished.code() == exit::CONFIRMED,
        "exit code {}: {}{}",
        finished.code(),
        finished.stdout,
        finished.stderr
    );
    let reports: Vec<Value> = serde_json::Deserializer::from_str(&finished.stdout)
        .into_iter()
        .collect::<Result<_, _>>()?;
    let [released, taken] = &reports[..] else {
        anyhow::bail!("two reports were expected: {reports:?}");
    };
    let locks = released["vips"][0]["released"].as_array();
    let credited = locks.map(|locks| {
        locks
            .iter()
            .filter(|lock| !lock["method"].is_null())
            .count()
    });
    ensure!(
        credited == Some(LOCKS as usize),
        "not released by this run: {released}"
    );
    let others = released["other_vips"].as_array().context("no others")?;
    let disturbed = others.iter().find(|other| other["fate"] != "untouched");
    // Their clients reclaim beside us.
    let disturbed = disturbed.filter(|other| other["fate"] != "changed_by_clients");
    ensure!(disturbed.is_none(), "another VIP: {disturbed:?}");
    let vip = &taken["vips"][0];
    ensure!(
        vip["missing"].as_array().is_some_and(Vec::is_empty)
            && vip["expected"] == LOCKS
            && vip["window"]["lockd"]["violations"] == 0,
        "the takeover: {vip}"
    );
    Ok(())
}

fn beside_grace(context: &Context) -> Result<End> {
    const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
    const NOBODY: u32 = 65534;
    let lab = Lab::up(&VIPS, 1)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let mounted = &lab.clients[0];
    let held = (mounted.client).lock(
        &mounted.mounts[1],
        "beside",
        crate::guest::locker::Range::WHOLE,
        crate::guest::locker::Mode::Write,
    )?;
    let takeover = ["failover", "--phase", "takeover", "--vip"];
    // Nothing is expected, so that it lasts for its grace.
    let mut lasting = tool.start(&[&takeover[..], &[VIPS[0], "--grace", "10m"]].concat())?;
    until("the grace of the first VIP", || {
        ensure!(!lasting.ended()?, "its takeover has ended");
        let listed = tool.run(&["grace", "--list"])?;
        Ok(match listed.stdout.contains("in grace") {
            true => Seen::Yes(()),
            false => Seen::No(listed.stdout),
        })
    })?;

    // No other user gets at what we wait for.
    let opened = finish(
        lab.server
            .node()
            .command("sh")
            .args(["-c", "flock -s -n /run/nlmfo true || ls /run/nlmfo"])
            .uid(NOBODY),
        "",
    )?;
    ensure!(
        opened.code() != 0,
        "nobody opens /run/nlmfo: {}",
        opened.stdout
    );

    let release = [
        "failover",
        "--phase",
        "release",
        "--deadline",
        "20",
        "--vip",
    ];
    tool.expect(exit::CONFIRMED, &[&release[..], &[VIPS[1]]].concat())?;
    let arguments = [&takeover[..], &[VIPS[1], "--grace", "2s", "--no-notify"]].concat();
    tool.expect(exit::CONFIRMED, &arguments)?;
    drop(held);

    // The same VIP is waited for, and who has it is named; cleanup would end its grace.
    let pid = lasting.id().to_string();
    let arguments = [
        "failover",
        "--phase",
        "release",
        "--deadline",
        "1",
        "--vip",
        VIPS[0],
    ];
    for arguments in [&arguments[..], &["cleanup"]] {
        let refused = tool.expect(exit::COULD_NOT_RUN, arguments)?;
        ensure!(
            refused.stderr.contains(&format!("pid {pid}")),
            "{arguments:?} does not name process {pid}: {}",
            refused.stderr
        );
    }
    ensure!(!lasting.ended()?, "the first VIP's takeover has ended");
    lasting.signal(Signal::SIGTERM)?;
    lasting.code()?;
    tool.expect(exit::CONFIRMED, &["grace", "--end", "--vip", VIPS[0]])?;
    Ok(End::Pass)
}

/// Whether a process has a lock on the lock file of a VIP.
fn works_on(pid: u32, vip: &str) -> Result<bool> {
    let Ok(folder) = fs::read_dir("/run/nlmfo") else {
        return Ok(false);
    };
    let mut inodes = Vec::new();
    for entry in folder {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("vip-") && name.contains(vip) {
            inodes.push(format!(":{}", entry.metadata()?.ino()));
        }
    }
    let pid = pid.to_string();
    Ok(fs::read_to_string("/proc/locks")?.lines().any(|line| {
        let mut words = line.split_whitespace();
        let is_its = words.any(|word| word == pid);
        is_its && words.any(|word| inodes.iter().any(|inode| word.ends_with(inode)))
    }))
}

fn one_vip(context: &Context) -> Result<End> {
    const VIP: &str = "10.77.0.1";
    const RECORD: &str = "/tmp/one-vip.json";
    let (lab, _held) = Lab::with_one_lock()?;
    let before = lab.server.locks()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let twice = |arguments: &[&str]| -> Result<[Finished; 2]> {
        thread::scope(|scope| {
            let both = [(); 2].map(|()| scope.spawn(|| tool.expect(exit::CONFIRMED, arguments)));
            let [first, second] = both.map(|run| run.join().expect("no panic"));
            Ok([first?, second?])
        })
    };
    let phase = |phase| ["failover", "--vip", VIP, "--phase", phase];
    let release = [
        &phase("release")[..],
        &["--deadline", "60s", "--record", RECORD],
    ]
    .concat();
    let takeover = [
        &phase("takeover")[..],
        &["--grace", "60s", "--expect", RECORD, "--json"],
    ]
    .concat();

    twice(&release)?;
    ensure!(lab.server.locks()?.is_empty(), "two releases left a lock");
    for taken in twice(&takeover)? {
        let report: Value = serde_json::from_str(&taken.stdout)?;
        let vip = &report["vips"][0];
        ensure!(
            vip["expected"] == 1 && vip["missing"].as_array().is_some_and(Vec::is_empty),
            "{report}"
        );
    }
    ensure!(lab.server.locks()? == before, "two takeovers lost the lock");
    ensure_no_grace(&tool)?;

    // A takeover that waited for a release, behind its window, and is refused then.
    let mut releasing = tool.start(&release)?;
    until("the release to have its VIP", || {
        ensure!(!releasing.ended()?, "the release has ended");
        Ok(match works_on(releasing.id(), VIP)? {
            true => Seen::Yes(()),
            false => Seen::No("it has not".into()),
        })
    })?;
    releasing.signal(Signal::SIGSTOP)?;
    let refused = ["--grace", "60s", "--expect", "/nonexistent"];
    let mut refused = tool.start(&[&phase("takeover")[..], &refused].concat())?;
    until("the window of the takeover", || {
        ensure!(!refused.ended()?, "the takeover has not waited");
        let listed = tool.run(&["grace", "--list"])?.stdout;
        Ok(match listed.contains("in grace") {
            true => Seen::Yes(()),
            false => Seen::No(listed),
        })
    })?;
    releasing.signal(Signal::SIGCONT)?;
    let code = releasing.code()?;
    ensure!(code == exit::CONFIRMED, "the release: exit code {code}");
    let code = refused.code()?;
    ensure!(
        code == exit::COULD_NOT_RUN,
        "the takeover: exit code {code}"
    );
    ensure_no_grace(&tool)?;
    tool.expect(exit::CONFIRMED, &takeover)?;
    ensure!(lab.server.locks()? == before, "the lock is not back");
    Ok(End::Pass)
}

fn ensure_no_grace(tool: &Tool) -> Result<()> {
    let listed = tool.expect(exit::CONFIRMED, &["grace", "--list"])?.stdout;
    ensure!(listed.contains("no VIP is in grace"), "{listed}");
    Ok(())
}
