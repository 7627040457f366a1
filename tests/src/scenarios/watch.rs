//! `nlmfo watch` on a terminal, while real clients lock and a VIP fails over.

use std::net::IpAddr;
use std::thread;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::{Context, End, Kernels, Scenario};
use crate::guest::command::run;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::pty::Pty;
use crate::guest::reboot;
use crate::guest::tool::{Tool, exit};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "watch-failover",
        claim: "the screen shows a failover from the locks to the last reclaim, and restores the terminal",
        run: failover,
        kernels: Kernels::One(
            "what the screen shows; locks-exact and counters-calls show where it comes from on every kernel",
        ),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "watch-restart",
        claim: "the screen continues when nfsd stops and comes back, and a signal restores the terminal",
        run: restart,
        kernels: Kernels::One("what the screen shows; watch-unload restarts lockd on every kernel"),
        ..Scenario::DEFAULT
    },
];

const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
/// NSM's: another number than any client has seen, and odd.
const STATE: u32 = 4711;

fn failover(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 2)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let [first, second] = &lab.clients[..] else {
        unreachable!("two clients were asked for");
    };
    let recording = "/tmp/recording";
    let mut watch = Pty::spawn(tool.command(&["watch", "--record", recording]), 80, 24)?;
    let _held = [
        first.lock("first", Range::new(0, 10))?,
        first.lock("first", Range::new(100, 10))?,
        second.lock("second", Range::WHOLE)?,
        (first.client).lock(&first.mounts[1], "stays", Range::WHOLE, Mode::Write)?,
    ];
    let vip = lab.vips[0];
    row_shows(&watch, vip, &["3", "serving"])?;
    row_shows(&watch, lab.vips[1], &["1", "serving"])?;

    watch.press("\r")?;
    watch.shows("the VIP's clients and locks", |text| {
        let client = first.client.address_for(vip).to_string();
        text.contains(&client) && text.contains("/export/first") && text.contains("LOCK latency")
    })?;
    watch.press("\x1b")?;
    row_shows(&watch, vip, &["serving"])?;

    let record = "/tmp/record.json";
    let release = [
        "failover", "--phase", "release", "--vip", VIPS[0], "--record", record,
    ];
    tool.expect(exit::CONFIRMED, &release)?;
    row_shows(&watch, vip, &["0", "released"])?;

    let takeover = [
        "failover",
        "--phase",
        "takeover",
        "--vip",
        VIPS[0],
        "--expect",
        record,
        "--grace",
        "100s",
        "--no-notify",
    ];
    thread::scope(|scope| -> Result<()> {
        let taking = scope.spawn(|| tool.expect(exit::CONFIRMED, &takeover));
        row_shows(&watch, vip, &["grace"])?;
        reboot::tell(first.client.address_for(vip), vip, STATE)?;
        row_shows(&watch, vip, &["reclaiming 2/3"])?;
        reboot::tell(second.client.address_for(vip), vip, STATE)?;
        taking.join().expect("running nlmfo does not panic")?;
        Ok(())
    })?;
    row_shows(&watch, vip, &["3", "serving"])?;
    row_shows(&watch, lab.vips[1], &["1", "serving"])?;

    watch.press("e")?;
    watch.shows("what happened", |text| {
        ["released by", "in grace for", "reclaimed", "grace ended"]
            .iter()
            .all(|words| text.contains(words))
    })?;
    watch.press("q")?;
    ensure!(
        watch.ended()? == (Some(exit::CONFIRMED), true),
        "after q: {}",
        watch.text()
    );

    let replayed = tool.expect(exit::CONFIRMED, &["watch", "--replay", recording, "--once"])?;
    ensure_table(&replayed.stdout, vip)?;
    let now = tool.expect(exit::CONFIRMED, &["watch", "--once"])?;
    ensure_table(&now.stdout, vip)?;
    let tick: Value = tool.json(exit::CONFIRMED, &["watch", "--once"])?;
    ensure!(
        tick["schema"] == "nlmfo.watch/1"
            && tick["vips"][0]["held"] == 3
            && tick["vips"][0]["state"] == "serving"
            && tick["details"][0]["locks"].as_array().map(Vec::len) == Some(3),
        "{tick}"
    );
    Ok(End::Pass)
}

fn restart(context: &Context) -> Result<End> {
    let (lab, _held) = Lab::with_one_lock()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let mut watch = Pty::spawn(tool.command(&["watch"]), 80, 24)?;
    row_shows(&watch, lab.vips[0], &["1", "serving"])?;
    lab.server.stop_nfsd()?;
    watch.shows("that nfsd has stopped", |text| {
        text.contains("nfsd has stopped")
    })?;
    run(lab.server.node().command("rpc.nfsd").arg("4"))?;
    watch.shows("that it is back", |text| {
        text.contains("kernel grace") && !text.contains("nfsd has stopped")
    })?;
    lab.server.end_grace()?;
    // Its client has to be told, as by any server that has rebooted.
    let client = lab.clients[0].client.address_for(lab.vips[0]);
    reboot::tell(client, lab.vips[0], STATE)?;
    watch.press("e")?;
    watch.shows("both in the events", |text| {
        text.contains("nfsd has stopped") && text.contains("lockd serves again")
    })?;
    watch.signal(Signal::SIGTERM)?;
    ensure!(
        watch.ended()? == (Some(exit::CONFIRMED), true),
        "after SIGTERM: {}",
        watch.text()
    );
    Ok(End::Pass)
}

/// Waits until the VIP's row in the overview has all of these words.
pub(super) fn row_shows(watch: &Pty, vip: IpAddr, words: &[&str]) -> Result<()> {
    let name = format!("{vip} ");
    let has_all = |row: &str| words.iter().all(|word| has(row, word));
    watch
        .shows(&format!("{vip} with {words:?}"), |text| {
            text.lines()
                .any(|row| row.starts_with(&name) && has_all(row))
        })
        .map(drop)
}

/// Whole words, one after the other.
fn has(row: &str, words: &str) -> bool {
    let row: Vec<&str> = row.split_whitespace().collect();
    let words: Vec<&str> = words.split_whitespace().collect();
    row.windows(words.len()).any(|some| some == words)
}

fn ensure_table(table: &str, vip: IpAddr) -> Result<()> {
    let row = table
        .lines()
        .find(|line| line.starts_with(&format!("{vip} ")));
    let row = row.with_context(|| format!("no row for {vip}: {table}"))?;
    ensure!(has(row, "3") && has(row, "serving"), "{table}");
    Ok(())
}
