//! `nlmfo probe`: its verdicts on this kernel, whom it refuses, and what it leaves behind
//! when it is killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nlmfo::probe::baseline::Baseline;
use nlmfo::probe::report::{Report, Verdict};

use super::{Context, End, Scenario};
use crate::guest::command::{finish_within, run};
use crate::guest::lab::Lab;
use crate::guest::place::Place;
use crate::guest::server::{NLM_GRACE_PERIOD, NLM_TIMEOUT};
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "probe-all",
        claim: "every check passes, is a known bug of this kernel's or says why it cannot be shown",
        run: all,
    },
    Scenario {
        name: "probe-baseline",
        claim: "with an earlier report, only what has become worse fails",
        run: baseline,
    },
    Scenario {
        name: "probe-refuses",
        claim: "a machine with live clients is left alone, and the clients are named",
        run: refuses,
    },
    Scenario {
        name: "probe-killed",
        claim: "a killed probe takes its server, its processes and its settings along",
        run: killed,
    },
];

/// Five times what a whole probe takes here with a machine of its own.
const LIMIT: Duration = Duration::from_secs(400);

fn probe(context: &Context, code: i32, arguments: &[&str]) -> Result<Report> {
    let root = Place::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let arguments = [&["probe", "--format", "json"], arguments].concat();
    let finished = finish_within(LIMIT, &mut tool.command(&arguments), "")?;
    ensure!(
        finished.code() == code,
        "exit code {}, not {code}: {}{}",
        finished.code(),
        finished.stderr,
        finished.stdout
    );
    serde_json::from_str(&finished.stdout).context("the report")
}

fn all(context: &Context) -> Result<End> {
    // No kernel that the lab knows is without a bug: unlock_ip takes no IPv6 address.
    let report = probe(context, exit::NOT_CONFIRMED, &[])?;
    for check in &report.checks {
        ensure!(
            !check.is_failed() || check.known.is_some(),
            "{}: {}",
            check.name,
            check.detail.as_deref().unwrap_or_default()
        );
        ensure!(
            check.verdict == Verdict::Pass || check.detail.is_some(),
            "{} does not say why",
            check.name
        );
    }
    let passed = (report.checks.iter()).filter(|check| check.verdict == Verdict::Pass);
    eprintln!(
        "{} of {} checks pass, in {} s",
        passed.count(),
        report.checks.len(),
        report.seconds
    );
    Ok(End::Pass)
}

fn baseline(context: &Context) -> Result<End> {
    const SOME: [&str; 4] = ["--only", "unlock-procfs-ipv6", "--only", "merge-split-ipv4"];
    let report = probe(context, exit::NOT_CONFIRMED, &SOME)?;
    let file = tempfile::NamedTempFile::new()?;
    let path = file.path().to_str().context("a path")?;
    let again = [SOME.as_slice(), &["--baseline", path]].concat();

    fs::write(path, serde_json::to_vec(&report)?)?;
    let second = probe(context, exit::CONFIRMED, &again)?;
    ensure!(
        Baseline::of(&report).changes(&second).is_empty(),
        "two runs differ: {report:?}, {second:?}"
    );

    let mut better = report;
    for check in &mut better.checks {
        check.verdict = Verdict::Pass;
    }
    fs::write(path, serde_json::to_vec(&better)?)?;
    probe(context, exit::NOT_CONFIRMED, &again)?;
    Ok(End::Pass)
}

fn refuses(context: &Context) -> Result<End> {
    let (lab, _held) = Lab::with_one_lock()?;
    let client = lab.clients[0].client.address_for(lab.vips[0]).to_string();
    let before = fs::read_to_string("/proc/modules")?;
    let tool = Tool::new(&context.nlmfo, lab.server.place());
    let refused = tool.expect(exit::COULD_NOT_RUN, &["probe"])?;
    ensure!(refused.stderr.contains(&client), "{}", refused.stderr);
    ensure!(
        fs::read_to_string("/proc/modules")? == before,
        "it loaded modules"
    );
    Ok(End::Pass)
}

fn killed(context: &Context) -> Result<End> {
    run(Command::new("modprobe").arg("lockd"))?;
    let settings = || [NLM_TIMEOUT, NLM_GRACE_PERIOD].map(fs::read_to_string);
    let before = settings().map(Result::unwrap_or_default);
    let mut child = Command::new(&context.nlmfo)
        .args(["probe", "--only", "merge-split", "--only", "lockd-restart"])
        .stdout(Stdio::piped())
        .spawn()
        .context("nlmfo probe")?;
    let stdout = child.stdout.take().context("its output")?;
    let first = BufReader::new(stdout)
        .lines()
        .find(|line| line.as_ref().is_ok_and(|line| line.starts_with("ok 1")));
    ensure!(first.is_some(), "it ended before its first check");
    let there = processes_elsewhere()?;
    ensure!(
        !there.is_empty(),
        "no process in a network namespace of its own"
    );
    child.kill()?;
    child.wait()?;
    until("nothing of the probe to be left", || {
        let (there, now) = (
            processes_elsewhere()?,
            settings().map(Result::unwrap_or_default),
        );
        Ok(match there.is_empty() && now == before {
            true => Seen::Yes(()),
            false => Seen::No(format!("{there:?} run, the settings are {now:?}")),
        })
    })?;
    // And the next one finds a machine that it can use.
    probe(context, exit::CONFIRMED, &["--only", "merge-split"])?;
    Ok(End::Pass)
}

/// Processes in other network namespaces than ours.
fn processes_elsewhere() -> Result<Vec<String>> {
    let ours = fs::read_link("/proc/self/ns/net")?;
    let mut found = Vec::new();
    for process in fs::read_dir("/proc")? {
        let path = process?.path();
        // It may end between listing and reading.
        if fs::read_link(path.join("ns/net")).is_ok_and(|theirs| theirs != ours) {
            found.push(fs::read_to_string(path.join("comm")).unwrap_or_default());
        }
    }
    Ok(found)
}
