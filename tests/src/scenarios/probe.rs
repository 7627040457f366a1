//! `nlmfo probe`: its verdicts on this kernel, whom it refuses, and what it leaves behind
//! when it is killed.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nlmfo::probe::baseline::Baseline;
use nlmfo_common::probe::{Report, Verdict};

use super::{Context, End, Kernels, Scenario};
use crate::emulation::PROBE_DEADLINE;
use crate::guest::command::{finish_within, run};
use crate::guest::lab::Lab;
use crate::guest::node::TestNode;
use crate::guest::server::{NLM_GRACE_PERIOD, NLM_TIMEOUT};
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "probe-all",
        claim: "every check passes, is a known bug of this kernel, or says why it was skipped",
        run: all,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "probe-baseline",
        claim: "with an earlier report, only regressions fail",
        run: baseline,
        kernels: Kernels::One("two reports are compared; probe-all makes one on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "probe-refuses",
        claim: "the probe refuses to run on a machine with live clients, and names them",
        run: refuses,
        kernels: Kernels::One("the probe looks for clients before it does anything"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "probe-killed",
        claim: "a killed probe removes its server, its processes and its settings",
        run: killed,
        kernels: Kernels::One("a process ends; probe-all shows the probe on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "probe-interrupted",
        claim: "an interrupted probe leaves the node as it was, including modules",
        run: interrupted,
        kernels: Kernels::One("a process ends; probe-all shows the probe on every kernel"),
        ..Scenario::DEFAULT
    },
];

fn probe(context: &Context, code: i32, arguments: &[&str]) -> Result<Report> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let arguments = [&["probe", "--format", "json"], arguments].concat();
    let finished = finish_within(PROBE_DEADLINE, &mut tool.command(&arguments), "")?;
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
    let passed = (report.checks.iter())
        .filter(|check| check.verdict == Verdict::Pass)
        .count();
    // The most that a kernel lacks or is known to do wrong is eleven, on 6.12.107.
    ensure!(
        passed + 11 >= report.checks.len(),
        "only {passed} of {} checks pass",
        report.checks.len()
    );
    eprintln!(
        "{passed} of {} checks pass, in {} s",
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
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let refused = tool.expect(exit::COULD_NOT_RUN, &["probe"])?;
    ensure!(refused.stderr.contains(&client), "{}", refused.stderr);
    ensure!(
        fs::read_to_string("/proc/modules")? == before,
        "it loaded modules"
    );
    Ok(End::Pass)
}

fn killed(context: &Context) -> Result<End> {
    // Killed, it cannot unload what it has loaded.
    run(Command::new("modprobe").args(["-a", "lockd", "nfsd", "nfsv3"]))?;
    let before = Node::look()?;
    let mut running = running(context)?;
    running.kill()?;
    running.wait()?;
    before.until_again()?;
    // And the next one finds a machine that it can use.
    probe(context, exit::CONFIRMED, &["--only", "merge-split"])?;
    Ok(End::Pass)
}

/// As a terminal does it: all of the process group is told.
fn interrupted(context: &Context) -> Result<End> {
    let before = Node::look()?;
    let mut running = running(context)?;
    let group = i32::try_from(running.id())?;
    kill(Pid::from_raw(-group), Signal::SIGINT).context("SIGINT")?;
    let code = until("nlmfo probe to end", || {
        Ok(match running.try_wait()? {
            Some(status) => Seen::Yes(status.code()),
            None => Seen::No("it runs".into()),
        })
    })?;
    ensure!(code == Some(exit::COULD_NOT_RUN), "exit status {code:?}");
    before.until_again().map(|()| End::Pass)
}

/// A probe that has shown its first check and has more to do.
fn running(context: &Context) -> Result<Child> {
    let mut child = Command::new(&context.nlmfo)
        .args(["probe", "--only", "merge-split", "--only", "grace"])
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("nlmfo probe")?;
    let stdout = child.stdout.take().context("its output")?;
    let mut lines = BufReader::new(stdout).lines();
    let first = lines.find(|line| line.as_ref().is_ok_and(|line| line.starts_with("ok 1")));
    ensure!(first.is_some(), "it ended before its first check");
    // It goes on to print.
    std::thread::spawn(move || lines.for_each(drop));
    ensure!(
        Node::look()? != Node::default(),
        "a probe that runs leaves no trace to look for"
    );
    Ok(child)
}

/// What a probe must not leave changed.
#[derive(Debug, Default, PartialEq, Eq)]
struct Node {
    /// Processes in network namespaces that are not ours.
    elsewhere: Vec<String>,
    /// lockd's settings.
    settings: Vec<String>,
    /// The NFS server's modules and their uses, which its kernel threads count, too.
    modules: Vec<String>,
}

impl Node {
    fn look() -> Result<Node> {
        let ours = fs::read_link("/proc/self/ns/net")?;
        let mut elsewhere = Vec::new();
        for process in fs::read_dir("/proc")? {
            let path = process?.path();
            // It may end between listing and reading.
            if fs::read_link(path.join("ns/net")).is_ok_and(|theirs| theirs != ours) {
                elsewhere.push(fs::read_to_string(path.join("comm")).unwrap_or_default());
            }
        }
        let modules = fs::read_to_string("/proc/modules")?;
        Ok(Node {
            elsewhere,
            settings: [NLM_TIMEOUT, NLM_GRACE_PERIOD]
                .into_iter()
                .filter_map(|file| fs::read_to_string(file).ok())
                .collect(),
            modules: (modules.lines())
                .filter_map(|line| {
                    let words: Vec<&str> = line.split_whitespace().take(3).collect();
                    let is_servers = ["lockd", "nfsd", "grace"].contains(words.first()?);
                    is_servers.then(|| format!("{} {}", words[0], words[2]))
                })
                .collect(),
        })
    }

    /// Waits until all of it is as it was.
    fn until_again(&self) -> Result<()> {
        until("the node as it was", || {
            let now = Node::look()?;
            Ok(match now == *self {
                true => Seen::Yes(()),
                false => Seen::No(format!("{now:?}, and it was {self:?}")),
            })
        })
    }
}
