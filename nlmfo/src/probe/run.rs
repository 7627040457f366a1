//! Runs the checks one after the other, each with a time limit, on a testbed that is reset between
//! them, and restores the machine.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nlmfo_common::probe::{Checked, Report, SCHEMA, Verdict};

use super::before::Before;
use super::checks::{Check, Done, LEAKS};
use super::known::{self, Kernel, Symptom};
use super::worker::Worker;
use crate::grace::gate;
use crate::kernel::preflight::Facts;
use crate::observe::programs::probed_functions;
use crate::output;
use crate::testbed::command::{run as command, search_path, tool};

/// The checks to run, with their limits.
pub struct Plan {
    pub checks: Vec<Check>,
    /// For each check.
    pub timeout: Duration,
    /// Set when the operator interrupts.
    pub interrupt: Arc<AtomicBool>,
}

/// Programs that a testbed needs.
#[derive(Debug, thiserror::Error)]
#[error(
    "this machine lacks {}: install nfs-kernel-server, nfs-common, rpcbind, iproute2 and kmod \
     (Debian's package names)", .0.join(", ")
)]
pub struct Missing(Vec<&'static str>);

/// Runs the checks and puts the machine back; `on` gets each as it ends, with its
/// number from 1.
///
/// # Errors
/// If the testbed does not come up, or the operator interrupts. The machine is put back in either case,
/// as far as it can be; what remains is reported on standard error.
pub fn run(plan: Plan, on: impl FnMut(usize, &Checked)) -> Result<Report> {
    let missing = missing_programs();
    if !missing.is_empty() {
        return Err(Missing(missing).into());
    }
    let began = Instant::now();
    let before = Before::look()?;
    let mut run = Run {
        kernel: None,
        report: Report {
            schema: SCHEMA.into(),
            kernel: crate::kernel::release()?,
            source: "unknown".into(),
            nlmfo: env!("CARGO_PKG_VERSION").into(),
            seconds: 0.0,
            checks: Vec::new(),
        },
        on,
    };
    let mut checks = plan.checks;
    let leaks = match checks.last() {
        Some(check) if check.name == LEAKS => checks.pop(),
        _ => None,
    };
    let ran = run.on_testbed(checks, plan.timeout, &plan.interrupt);
    let start = Instant::now();
    let mut left = before.restore();
    let on_testbed = ran.as_ref().map_or_else(|_| Vec::new(), Clone::clone);
    left.splice(0..0, on_testbed);
    if leaks.is_none() || ran.is_err() {
        for left in &left {
            output::note(format_args!("left behind: {left}"));
        }
    }
    ran?;
    if let Some(check) = &leaks {
        let done = match left.is_empty() {
            true => Ok(Done::Shown),
            false => Err(anyhow::anyhow!("{}", left.join("; "))),
        };
        run.tell(check, done, start.elapsed());
    }
    run.report.seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    Ok(run.report)
}

/// The report as it grows.
struct Run<F> {
    kernel: Option<Kernel>,
    report: Report,
    on: F,
}

impl<F: FnMut(usize, &Checked)> Run<F> {
    /// Runs checks on a testbed. Returns what nlmfo and lockd did not release.
    fn on_testbed(
        &mut self,
        checks: Vec<Check>,
        timeout: Duration,
        interrupt: &Arc<AtomicBool>,
    ) -> Result<Vec<String>> {
        command(tool("modprobe").args(["-a", "lockd", "nfsd"]))
            .context("cannot load the NFS server's modules")?;
        let kernel = kernel();
        if let Some(version) = kernel.version {
            self.report.source = version.to_string();
        }
        self.kernel = Some(kernel.clone());
        let checks = Arc::new(checks);
        let worker = Worker::start(Arc::clone(&checks), kernel, Arc::clone(interrupt))?;
        let told = self.report_all(&worker, &checks, timeout);
        let left = worker.end();
        told.map(|()| left)
    }

    fn report_all(&mut self, worker: &Worker, checks: &[Check], timeout: Duration) -> Result<()> {
        let mut broken: Option<String> = None;
        for check in checks {
            if let Some(reason) = &broken {
                let done = Err(anyhow::anyhow!("not run: {reason}"));
                self.tell(check, done, Duration::ZERO);
                continue;
            }
            let outcome = worker.outcome(timeout)?;
            broken = outcome.broken;
            self.tell(check, outcome.done, outcome.took);
        }
        Ok(())
    }

    /// Adds a check to the report.
    fn tell(&mut self, check: &Check, done: Result<Done>, took: Duration) {
        let symptom = (done.as_ref().err()).and_then(|error| {
            error
                .chain()
                .find_map(|cause| cause.downcast_ref::<Symptom>())
        });
        let known = symptom
            .zip(self.kernel.as_ref())
            .and_then(|(symptom, kernel)| known::name(*symptom, kernel));
        let (verdict, detail) = match done {
            Ok(Done::Shown) => (Verdict::Pass, None),
            Ok(Done::Unsupported(reason)) => (Verdict::Unsupported, Some(reason)),
            Err(error) => (Verdict::Fail, Some(format!("{error:#}"))),
        };
        let checked = Checked {
            name: check.name.clone(),
            proves: check.proves.clone(),
            verdict,
            detail,
            known,
            seconds: (took.as_secs_f64() * 1000.0).round() / 1000.0,
        };
        (self.on)(self.report.checks.len() + 1, &checked);
        self.report.checks.push(checked);
    }
}

/// The programs that a testbed needs and that no directory has.
fn missing_programs() -> Vec<&'static str> {
    const NEEDED: &[&str] = &[
        "cp",
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
    let path = search_path();
    let folders: Vec<_> = std::env::split_paths(&path).collect();
    let is_missing = |program: &&str| !folders.iter().any(|folder| folder.join(program).exists());
    NEEDED.iter().copied().filter(is_missing).collect()
}

/// What is known of the kernel before the checks.
fn kernel() -> Kernel {
    let functions: Vec<&str> = probed_functions().chain(gate::probed_functions()).collect();
    Kernel {
        version: crate::kernel::version(),
        unlock_ip: Facts::gather(&functions).unlock_ip,
    }
}
