//! A failover, and a restart, with as many clients as a large server has.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use nlmfo::testbed::proc_locks::PosixLock;
use serde_json::Value;

use super::{Context, End, Kernels, Scenario};
use crate::guest::command::Finished;
use crate::guest::lab::Lab;
use crate::guest::load::{self, Holding, Monitoring};
use crate::guest::raw::RawNet;
use crate::guest::reclaimers::{Reclaimed, reclaim_while};
use crate::guest::server::{NFSD_GRACE_TIME, NLM_GRACE_PERIOD};
use crate::guest::tool::{Tool, exit};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "takeover-thousand",
        claim: "a thousand clients reclaim ten locks each, and grace ends with the last of them",
        run: take_over,
        kernels: Kernels::One("it measures; takeover-reclaim shows the same on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "restart-thousand",
        claim: "over a restart of the server, a thousand clients reclaim ten locks each, and grace \
            ends with the last of them",
        run: restart,
        only_full: Some("it measures; takeover-thousand has as many clients"),
        ..Scenario::DEFAULT
    },
];

const VIP: &str = "10.77.0.1";
const CLIENTS: u16 = 1000;
const LOCKS_EACH: u32 = 10;
const ALL: usize = CLIENTS as usize * LOCKS_EACH as usize;
const FILES: usize = 100;
/// What a server without word of its clients' locks waits, in seconds.
const FIXED_GRACE: f64 = 90.0;
/// Emulated machines are slow: these are no expectations.
const LONG: &str = "300";
/// The longest that lockd accepts.
const LONG_GRACE: &str = "240";

/// A thousand clients hold their locks, and reclaim them while the command runs. Afterwards the same
/// locks are there.
fn held_over(
    lab: &Lab,
    command: impl FnOnce() -> Result<Finished> + Send,
) -> Result<(Vec<Value>, Reclaimed)> {
    let net = RawNet::join(&lab.server)?;
    let names: Vec<String> = (0..FILES).map(|n| format!("file-{n}")).collect();
    let files = net.files(&lab.server, lab.vips[0], &names)?;
    let holding = Holding {
        vips: &lab.vips,
        clients: CLIENTS,
        locks: LOCKS_EACH,
        monitoring: Monitoring::Unmonitored,
    };
    load::hold(&net, &files, holding)?;
    let before = lab.server.locks()?;
    ensure!(before.len() == ALL, "{} locks", before.len());
    let (finished, reclaimed) = reclaim_while(&net, &files, holding, command)?;
    let reports = serde_json::Deserializer::from_str(&finished.stdout).into_iter();
    let reports = reports.collect::<Result<_, _>>()?;
    ensure!(
        places(lab.server.locks()?) == places(before),
        "other locks than before"
    );
    Ok((reports, reclaimed))
}

/// The process is lockd, which may be another one now.
fn places(locks: Vec<PosixLock>) -> BTreeSet<PosixLock> {
    let places = locks.into_iter();
    places.map(|lock| PosixLock { pid: 0, ..lock }).collect()
}

fn seconds(report: &Value) -> Result<f64> {
    let ms = report["took_ms"].as_f64().context("took_ms")?;
    Ok(ms / 1e3)
}

fn take_over(context: &Context) -> Result<End> {
    let lab = Lab::up(&[VIP], 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let arguments = [
        "failover",
        "--vip",
        VIP,
        "--deadline",
        LONG,
        "--fence",
        "400s",
        "--grace",
        "300s",
        "--json",
    ];
    let (reports, reclaimed) = held_over(&lab, || tool.expect(exit::CONFIRMED, &arguments))?;
    let [released, taken] = &reports[..] else {
        anyhow::bail!("two reports were expected: {reports:?}");
    };
    let vip = &taken["vips"][0];
    ensure!(
        vip["expected"] == ALL
            && vip["missing"].as_array().is_some_and(Vec::is_empty)
            && vip["notified"]["done"] == true
            && vip["window"]["lockd"]["violations"] == 0,
        "{} expected, {} missing, {} told, window {}",
        vip["expected"],
        vip["missing"].as_array().map_or(0, Vec::len),
        vip["notified"]["done"],
        vip["window"]
    );
    let blackout = seconds(released)? + seconds(taken)?;
    eprintln!(
        "{CLIENTS} clients, {ALL} locks: told in {:?}, the last lock back {:?} after the first word; \
         release {:.1} s, takeover {:.1} s to the end of grace; {:.0} % of a fixed grace of \
         {FIXED_GRACE} s after such a release",
        reclaimed.last_told - reclaimed.first_told,
        reclaimed.last_back - reclaimed.first_told,
        seconds(released)?,
        seconds(taken)?,
        100.0 * blackout / (seconds(released)? + FIXED_GRACE),
    );
    Ok(End::Pass)
}

fn restart(context: &Context) -> Result<End> {
    let lab = Lab::up(&[VIP], 0)?;
    let node = lab.server.node();
    lab.server.stop_nfsd()?;
    for (file, value) in [
        (NLM_GRACE_PERIOD, LONG_GRACE),
        (NFSD_GRACE_TIME, LONG_GRACE),
        // These clients do not ask rpcbind again.
        ("/proc/sys/fs/nfs/nlm_tcpport", "32803"),
    ] {
        node.write(file, value)?;
    }
    lab.server.start_nfsd()?;
    lab.server.end_grace()?;
    let tool = Tool::new(&context.nlmfo, node);
    let (reports, reclaimed) = held_over(&lab, || {
        tool.expect(exit::CONFIRMED, &["restart", "--json"])
    })?;
    let [report] = &reports[..] else {
        anyhow::bail!("one report was expected: {reports:?}");
    };
    let start = &report["start"];
    ensure!(
        start["expected"] == ALL
            && start["missing"]["locks"]
                .as_array()
                .is_some_and(Vec::is_empty)
            && start["ended"] == "early",
        "{} expected, ended {}",
        start["expected"],
        start["ended"]
    );
    eprintln!(
        "{CLIENTS} clients, {ALL} locks: told in {:?}, the last lock back {:?} after the first word; \
         stop {:.1} s, start {:.1} s to the end of grace",
        reclaimed.last_told - reclaimed.first_told,
        reclaimed.last_back - reclaimed.first_told,
        seconds(&report["stop"])?,
        seconds(start)?,
    );
    Ok(End::Pass)
}
