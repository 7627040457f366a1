//! A failover of as many clients as a large server has.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Context, End, Kernels, Scenario};
use crate::guest::lab::Lab;
use crate::guest::load::{self, Holding, Monitoring};
use crate::guest::raw::RawNet;
use crate::guest::reclaimers::reclaim_while;
use crate::guest::tool::{Tool, exit};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "takeover-thousand",
    claim: "a thousand clients reclaim ten locks each, and grace ends with the last of them",
    run: thousand,
    kernels: Kernels::One("it measures; takeover-reclaim shows the same on every kernel"),
    ..Scenario::DEFAULT
}];

const VIP: &str = "10.77.0.1";
const CLIENTS: u16 = 1000;
const LOCKS_EACH: u32 = 10;
const FILES: usize = 100;
/// What a server without word of its clients' locks waits, in seconds.
const FIXED_GRACE: f64 = 90.0;

fn thousand(context: &Context) -> Result<End> {
    let lab = Lab::up(&[VIP], 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
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
    ensure!(
        before.len() == usize::from(CLIENTS) * LOCKS_EACH as usize,
        "{} locks",
        before.len()
    );

    // Emulated machines are slow: these are no expectations.
    let arguments = [
        "failover",
        "--vip",
        VIP,
        "--deadline",
        "300",
        "--fence",
        "400s",
        "--grace",
        "300s",
        "--json",
    ];
    let (finished, reclaimed) = reclaim_while(&net, &files, holding, || {
        tool.expect(exit::CONFIRMED, &arguments)
    })?;
    let reports: Vec<Value> = serde_json::Deserializer::from_str(&finished.stdout)
        .into_iter()
        .collect::<Result<_, _>>()?;
    let [released, taken] = &reports[..] else {
        anyhow::bail!("two reports were expected: {reports:?}");
    };
    let vip = &taken["vips"][0];
    ensure!(
        vip["expected"] == before.len()
            && vip["missing"].as_array().is_some_and(Vec::is_empty)
            && vip["notified"]["done"] == true
            && vip["window"]["lockd"]["violations"] == 0,
        "{} expected, {} missing, {} told, window {}",
        vip["expected"],
        vip["missing"].as_array().map_or(0, Vec::len),
        vip["notified"]["done"],
        vip["window"]
    );
    ensure!(lab.server.locks()? == before, "other locks than before");
    let seconds = |report: &Value| {
        report["took_ms"]
            .as_f64()
            .context("took_ms")
            .map(|ms| ms / 1e3)
    };
    let blackout = seconds(released)? + seconds(taken)?;
    eprintln!(
        "{CLIENTS} clients, {} locks: told in {:?}, the last lock back {:?} after the first word; \
         release {:.1} s, takeover {:.1} s to the end of grace; {:.0} % of a fixed grace of \
         {FIXED_GRACE} s after such a release",
        before.len(),
        reclaimed.last_told - reclaimed.first_told,
        reclaimed.last_back - reclaimed.first_told,
        seconds(released)?,
        seconds(taken)?,
        100.0 * blackout / (seconds(released)? + FIXED_GRACE),
    );
    Ok(End::Pass)
}
