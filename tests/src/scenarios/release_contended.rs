//! `nlmfo failover --phase release` while clients go on locking through the VIP.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Result, bail};

use super::release::arguments;
use super::{Context, End, Kernels, Scenario};
use crate::guest::command::Finished;
use crate::guest::lab::Lab;
use crate::guest::load::{self, Monitoring};
use crate::guest::raw::RawNet;
use crate::guest::report::Releases;
use crate::guest::tool::{Tool, exit};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "release-contended",
    claim: "while clients continue to lock through the VIP, its release is not confirmed",
    run: contended,
    kernels: Kernels::One(
        "the last snapshots do not depend on the kernel; release-ipv4 has busy clients on every kernel",
    ),
    ..Scenario::DEFAULT
}];

/// Releases under contention, at most.
const CONTENDED_TRIES: usize = 5;

fn contended(context: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1"], 0)?;
    let vip = lab.vips[0];
    let net = RawNet::join(&lab.server)?;
    let names: Vec<String> = (0..4).map(|i| format!("contended{i}")).collect();
    let files = net.files(&lab.server, vip, &names)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let arguments = arguments(&[vip], &["--deadline", "5", "--json"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();

    let over = AtomicBool::new(false);
    let ends = thread::scope(|scope| {
        scope.spawn(|| {
            let go_on = || !over.load(Ordering::Relaxed);
            while go_on() {
                // An error is a connection that calls in its client's name cut.
                let _ = load::pairs_while(&net, vip, &files, Monitoring::Unmonitored, go_on);
            }
        });
        // Whether a lock is taken between the last looks is chance.
        let until_refused = || -> Result<Vec<_>> {
            let mut ends = Vec::new();
            for _ in 0..CONTENDED_TRIES {
                ends.push(tool.run(&arguments)?);
                if ends.last().map(Finished::code) == Some(exit::NOT_CONFIRMED) {
                    break;
                }
            }
            Ok(ends)
        };
        let ends = until_refused();
        over.store(true, Ordering::Relaxed);
        ends
    })?;
    let mut refused = 0;
    for finished in &ends {
        let report = Releases::of(serde_json::from_str(&finished.stdout)?)?;
        let verdict = &report.vip(vip)?.verdict;
        match finished.code() {
            exit::CONFIRMED if verdict == "confirmed" => {}
            exit::NOT_CONFIRMED if verdict == "not_confirmed" => refused += 1,
            code => bail!("exit code {code} with the verdict {verdict}"),
        }
    }
    if refused == 0 {
        return Ok(End::Unsupported(format!(
            "in {CONTENDED_TRIES} releases no client came to lock between the last looks"
        )));
    }
    Ok(End::Pass)
}
