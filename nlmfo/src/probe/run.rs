//! Running the checks: one after the other, each with a time limit, on a test bed that is
//! swept between them.

use std::env;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::before::Before;
use super::checks::{Check, Done, LEAKS};
use super::known::{self, Kernel};
use super::report::{Checked, Report, SCHEMA, Verdict};
use super::stage::Stage;
use super::version::Version;
use crate::bed::command::run as command;
use crate::grace::gate;
use crate::kernel::preflight::Facts;
use crate::observe::programs::probed_functions;

/// How long the test bed may take to come up, and between two checks to be swept.
const BED: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(100);

/// What is to be done, and how patiently.
pub struct Plan {
    pub checks: Vec<Check>,
    /// For each check.
    pub timeout: Duration,
    /// Set when the operator interrupts.
    pub stop: Arc<AtomicBool>,
}

/// What the worker that has the test bed tells of a check.
struct Outcome {
    done: Result<Done>,
    took: Duration,
    /// Why no check can follow.
    broken: Option<String>,
}

/// Runs the checks and puts the machine back; `on` is told of each as it ends, with its
/// number from 1.
///
/// # Errors
/// If the test bed does not come up, or the operator interrupts. The machine is put back
/// in either case.
pub fn run(plan: Plan, mut on: impl FnMut(usize, &Checked) -> Result<()>) -> Result<Report> {
    let began = Instant::now();
    let missing = missing_programs();
    ensure!(
        missing.is_empty(),
        "this machine lacks {}: install nfs-kernel-server, nfs-common, rpcbind, iproute2 and kmod \
         (Debian's names)",
        missing.join(", ")
    );
    let before = Before::look()?;
    command(Command::new("modprobe").args(["-a", "lockd", "nfsd"]))
        .context("loading the NFS server's modules")?;
    let kernel = kernel();
    let with_leaks = plan.checks.last().is_some_and(|check| check.name == LEAKS);
    let mut checks = plan.checks;
    let leaks = with_leaks.then(|| checks.pop()).flatten();

    let mut report = Report {
        schema: SCHEMA.into(),
        kernel: crate::kernel::release()?,
        source: (kernel.version).map_or_else(|| "unknown".into(), |version| version.to_string()),
        nlmfo: env!("CARGO_PKG_VERSION").into(),
        seconds: 0.0,
        checks: Vec::new(),
    };
    let mut tell = |report: &mut Report, check: &Check, verdict, detail, took: Duration| {
        let known = (verdict == Verdict::Fail)
            .then(|| known::name(&check.name, &kernel))
            .flatten();
        let checked = Checked {
            name: check.name.clone(),
            proves: check.proves.clone(),
            verdict,
            detail,
            known,
            seconds: (took.as_secs_f64() * 1000.0).round() / 1000.0,
        };
        on(report.checks.len() + 1, &checked)?;
        report.checks.push(checked);
        anyhow::Ok(())
    };

    let ran = match checks.is_empty() {
        true => Ok(Vec::new()),
        false => on_bed(
            checks,
            plan.timeout,
            &plan.stop,
            |check, verdict, detail, took| tell(&mut report, check, verdict, detail, took),
        ),
    };
    let start = Instant::now();
    let left = before.restore();
    let mut on_bed = ran?;
    on_bed.extend(left.context("putting the machine back as it was")?);
    let left = on_bed;
    if let Some(check) = &leaks {
        let (verdict, detail) = match left.is_empty() {
            true => (Verdict::Pass, None),
            false => (Verdict::Fail, Some(left.join("; "))),
        };
        tell(&mut report, check, verdict, detail, start.elapsed())?;
    }
    report.seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    Ok(report)
}

/// The programs that a test bed needs and that no folder of PATH has.
fn missing_programs() -> Vec<&'static str> {
    const NEEDED: &[&str] = &[
        "exportfs",
        "ip",
        "modprobe",
        "mount",
        "mount.nfs",
        "nfsdcld",
        "nsenter",
        "rmmod",
        "rpc.mountd",
        "rpc.nfsd",
        "rpc.statd",
        "rpcbind",
        "tee",
        "umount",
    ];
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = env::split_paths(&path).collect();
    let is_missing = |program: &&str| !folders.iter().any(|folder| folder.join(program).exists());
    NEEDED.iter().copied().filter(is_missing).collect()
}

/// What is known of the kernel, before anything is asked of it.
fn kernel() -> Kernel {
    let functions: Vec<&str> = probed_functions().chain(gate::probed_functions()).collect();
    let release = crate::kernel::release().unwrap_or_default();
    let version = fs::read_to_string("/proc/sys/kernel/version").unwrap_or_default();
    Kernel {
        version: Version::of_kernel(&release, &version),
        unlock_ip: Facts::gather(&functions).unlock_ip,
    }
}

/// Runs checks on a test bed, which a thread of its own has: a check that hangs must not
/// hang us. Returns what nlmfo had left on the bed.
fn on_bed(
    checks: Vec<Check>,
    timeout: Duration,
    stop: &Arc<AtomicBool>,
    mut tell: impl FnMut(&Check, Verdict, Option<String>, Duration) -> Result<()>,
) -> Result<Vec<String>> {
    let checks = Arc::new(checks);
    let (up, is_up) = channel();
    let (outcomes, results) = channel();
    let worker = thread::spawn({
        let (checks, stop) = (Arc::clone(&checks), Arc::clone(stop));
        move || work(&checks, &stop, &up, &outcomes)
    });
    match wait(&is_up, BED, stop)? {
        Some(came_up) => came_up.context("the test bed does not come up")?,
        None => bail!("the test bed did not come up within {BED:?}"),
    }
    let mut broken: Option<String> = None;
    for check in checks.iter() {
        if let Some(reason) = &broken {
            let detail = format!("not run: {reason}");
            tell(check, Verdict::Fail, Some(detail), Duration::ZERO)?;
            continue;
        }
        match wait(&results, timeout + BED, stop)? {
            Some(outcome) => {
                let (verdict, detail) = match outcome.done {
                    Ok(Done::Shown) => (Verdict::Pass, None),
                    Ok(Done::Unsupported(reason)) => (Verdict::Unsupported, Some(reason)),
                    Err(error) => (Verdict::Fail, Some(format!("{error:#}"))),
                };
                let late = (outcome.took > timeout)
                    .then(|| format!("it took {:.1?}, more than {timeout:?}", outcome.took));
                match late {
                    Some(late) => tell(check, Verdict::Fail, Some(late), outcome.took)?,
                    None => tell(check, verdict, detail, outcome.took)?,
                }
                broken = outcome.broken;
            }
            None => {
                let detail = format!("it did not end within {timeout:?}");
                tell(check, Verdict::Fail, Some(detail), timeout)?;
                broken = Some(format!("{} hangs", check.name));
            }
        }
    }
    // A check that hangs has the bed, and our end takes both away.
    if let Some(reason) = broken {
        return Ok(vec![reason]);
    }
    match worker.join() {
        Ok(left) => left,
        Err(_) => bail!("the checks' thread panicked"),
    }
}

/// The worker: brings the bed up, runs every check on it, and takes it down. Returns what
/// nlmfo had left on it.
fn work(
    checks: &[Check],
    stop: &AtomicBool,
    up: &Sender<Result<()>>,
    outcomes: &Sender<Outcome>,
) -> Result<Vec<String>> {
    let mut stage = match Stage::up() {
        Ok(stage) => stage,
        Err(error) => {
            let _ = up.send(Err(error));
            return Ok(Vec::new());
        }
    };
    let _ = up.send(Ok(()));
    for check in checks {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let start = Instant::now();
        let Some(done) = check.run(&mut stage) else {
            continue;
        };
        let took = start.elapsed();
        let broken = stage.sweep().err().map(|error| {
            format!(
                "after {} the server could not be swept: {error:#}",
                check.name
            )
        });
        let is_broken = broken.is_some();
        let _ = outcomes.send(Outcome { done, took, broken });
        if is_broken {
            break;
        }
    }
    stage.cleanup()
}

/// The next message; none if it does not come in time.
///
/// # Errors
/// If the operator interrupts, or the other side has ended.
fn wait<T>(from: &Receiver<T>, limit: Duration, stop: &AtomicBool) -> Result<Option<T>> {
    let deadline = Instant::now() + limit;
    loop {
        match from.recv_timeout(POLL) {
            Ok(message) => return Ok(Some(message)),
            Err(RecvTimeoutError::Disconnected) => bail!("the checks' thread has ended"),
            Err(RecvTimeoutError::Timeout) => {
                ensure!(!stop.load(Ordering::Relaxed), "interrupted");
                if Instant::now() >= deadline {
                    return Ok(None);
                }
            }
        }
    }
}
