//! Every scenario on every chosen kernel, one virtual machine each; those that need a
//! cluster of machines on the first kernel alone.
//!
//! `NLMFO_LAB_KERNELS` names the kernels, with spaces between them, as
//! `cargo xtask lab run --kernel` does; the default is one whose `unlock_ip`
//! works and one whose does not; an empty list runs nothing. A scenario that a
//! kernel cannot show is reported as ignored, with the reason.

use std::env;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nlmfo_tests::cluster::NODES;
use nlmfo_tests::scenarios::{self, Scenario};
use nlmfo_tests::verdict::{Report, Verdict};
use xtask::cache::Cache;
use xtask::lab::{Cluster, ClusterOutcome, Kernel, KernelName, Lab, Outcome, Run};

const DEFAULT_KERNELS: &str = "unlock-ip:broken unlock-ip:works";

/// Under emulation a virtual machine keeps more than one core busy.
const MACHINES_AT_ONCE: usize = 2;

const DEADLINE: Duration = Duration::from_secs(600);

/// Of each disk that a cluster's servers share; sparse.
const DISK: u64 = 64 << 20;
const DISKS: usize = 2;

/// Runs of a scenario, should the emulator fail and not the kernel.
const TRIES: u32 = 3;

fn main() -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(MACHINES_AT_ONCE));
    match trials(arguments.list) {
        Ok(trials) => libtest_mimic::run(&arguments, trials).exit_code(),
        Err(error) => {
            eprintln!("the lab cannot be used: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A trial for each scenario on each kernel. For a list nothing is built,
/// downloaded or run.
fn trials(list: bool) -> Result<Vec<Trial>> {
    let names = kernel_names()?;
    let bench = match list || names.is_empty() {
        true => None,
        false => Some(Arc::new(Bench::prepare(&names)?)),
    };
    let mut trials = Vec::new();
    for (kernel, name) in names.iter().enumerate() {
        let mut add = |scenario: Scenario, run: fn(&Bench, usize, &str) -> Result<_, _>| {
            let bench = bench.clone();
            let name = format!("{name}::{}", scenario.name);
            trials.push(Trial::ignorable_test(name, move || match bench {
                Some(bench) => run(&bench, kernel, scenario.name),
                None => Err("a trial of a list does not run".into()),
            }));
        };
        for scenario in scenarios::on_one_machine() {
            add(scenario, Bench::on_one_machine);
        }
        // Three machines each, for a minute or two: what differs between kernels the others
        // have shown.
        if kernel == 0 {
            for scenario in scenarios::on_a_cluster() {
                add(scenario, Bench::on_a_cluster);
            }
        }
    }
    Ok(trials)
}

fn kernel_names() -> Result<Vec<KernelName>> {
    env::var("NLMFO_LAB_KERNELS")
        .unwrap_or_else(|_| DEFAULT_KERNELS.into())
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_>>()
        .context("NLMFO_LAB_KERNELS")
}

/// What every trial shares.
struct Bench {
    lab: Lab,
    kernels: Vec<Kernel>,
    /// The folder with `nlmfo` and `lab-guest`.
    programs: PathBuf,
    /// Written by a cluster, which keeps the whole machine busy; read by the others.
    machines: RwLock<()>,
}

impl Bench {
    fn prepare(names: &[KernelName]) -> Result<Bench> {
        let programs = xtask::build::workspace(&Cache::open()?, false)?;
        let lab = Lab::open()?;
        let kernels = names
            .iter()
            .map(|name| {
                let kernel = lab.kernel(name)?;
                eprintln!("{name} is {}", kernel.release);
                Ok(kernel)
            })
            .collect::<Result<_>>()?;
        Ok(Bench {
            lab,
            kernels,
            programs,
            machines: RwLock::new(()),
        })
    }

    fn on_one_machine(&self, kernel: usize, scenario: &str) -> Result<Completion, Failed> {
        let _others = self.machines.read().unwrap_or_else(PoisonError::into_inner);
        let run = self.machine(kernel, &["scenario", scenario]);
        let outcome = tried(
            || self.lab.run(&run, &mut |_, _| {}),
            Outcome::is_emulators_fault,
        )?;
        let status = outcome.status();
        completion(status, &outcome, || said(&outcome))
    }

    fn on_a_cluster(&self, kernel: usize, scenario: &str) -> Result<Completion, Failed> {
        let _alone = (self.machines.write()).unwrap_or_else(PoisonError::into_inner);
        let cluster = Cluster {
            driver: self.machine(kernel, &["scenario", scenario]),
            servers: NODES
                .map(|(name, address)| self.machine(kernel, &["node", name, address]))
                .into(),
            disks: vec![DISK; DISKS],
        };
        let outcome = tried(
            || self.lab.run_cluster(&cluster, &mut |_, _| {}),
            ClusterOutcome::is_emulators_fault,
        )?;
        completion(outcome.status(), &outcome.driver, || {
            let servers = NODES.iter().zip(&outcome.servers);
            let servers = servers.map(|((name, _), server)| {
                format!("\n=== {name}: {}\n{}", server.ending, said(server))
            });
            said(&outcome.driver) + &servers.collect::<String>()
        })
    }

    /// A machine that does this with `lab-guest`.
    fn machine(&self, kernel: usize, arguments: &[&str]) -> Run {
        let command = ["/lab-guest"].iter().chain(arguments).copied();
        let mut run = Run::new(self.kernels[kernel].clone(), command);
        run.deadline = DEADLINE;
        run.files = ["nlmfo", "lab-guest"]
            .map(|program| (self.programs.join(program), format!("/{program}").into()))
            .into();
        run
    }
}

/// Runs once more where the emulator failed, not the kernel.
fn tried<T>(
    mut run: impl FnMut() -> Result<T>,
    is_emulators_fault: impl Fn(&T) -> bool,
) -> Result<T, Failed> {
    let mut tries = 1;
    loop {
        let outcome = run().map_err(|error| format!("{error:#}"))?;
        if !is_emulators_fault(&outcome) || tries == TRIES {
            return Ok(outcome);
        }
        eprintln!("the emulator failed, not the kernel; again");
        tries += 1;
    }
}

/// The scenario's own word, unless the kernel got into trouble meanwhile.
fn completion(
    status: Result<i32>,
    outcome: &Outcome,
    said: impl Fn() -> String,
) -> Result<Completion, Failed> {
    status.map_err(|error| format!("{error:#}\n{}", said()))?;
    match Report::find_in(&String::from_utf8_lossy(&outcome.stdout)) {
        Some(report) => match report.verdict {
            Verdict::Pass => Ok(Completion::Completed),
            Verdict::Unsupported(reason) => Ok(Completion::ignored_with(reason)),
            Verdict::Fail(why) => Err(format!("{why}\n{}", said()).into()),
        },
        None => Err(format!("the guest made no report\n{}", said()).into()),
    }
}

/// What a person wants to see of a run that failed.
fn said(outcome: &Outcome) -> String {
    format!(
        "--- the guest's standard error\n{}\n--- the end of the kernel's console\n{}",
        String::from_utf8_lossy(&outcome.stderr),
        outcome.console_tail(30)
    )
}
