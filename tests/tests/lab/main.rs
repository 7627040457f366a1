//! The scenarios on every chosen kernel, in virtual machines: several scenarios one after
//! the other in each, those that need a cluster of machines on the first kernel alone.
//!
//! | variable | says |
//! |---|---|
//! | `NLMFO_LAB_KERNELS` | the kernels, with spaces between them, as `cargo xtask lab run --kernel` takes them; by default one whose `unlock_ip` works and one whose does not; an empty list runs nothing |
//! | `NLMFO_LAB_ARCH` | the machines' architecture, as `--arch` takes it; by default this machine's |
//! | `NLMFO_LAB_SCENARIOS` | run these scenarios only: words with spaces between them, each a scenario's name or a part of several |
//! | `NLMFO_LAB_OUTPUT` | `1`: show the standard error of scenarios that pass, too |
//! | `NLMFO_LAB_FULL` | `1`: every scenario on every kernel, in its long form if it has one |
//!
//! A scenario that a kernel cannot show is reported as ignored, with the reason.
//! `--test-threads` is the number of machines at once.

mod bench;

use std::env;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use clap::ValueEnum as _;
use libtest_mimic::{Arguments, Trial};
use nlmfo_tests::emulation;
use nlmfo_tests::queue::{Job, Place, Queue};
use nlmfo_tests::scenarios::{self, Kernels, Machine};
use xtask::arch::Arch;
use xtask::lab::KernelName;

use bench::Bench;

const DEFAULT_KERNELS: &str = "unlock-ip:broken unlock-ip:works";

fn main() -> ExitCode {
    match run(Arguments::from_args()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("the lab cannot be used: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(mut arguments: Arguments) -> Result<ExitCode> {
    let names = kernel_names()?;
    let full = env::var("NLMFO_LAB_FULL").is_ok_and(|full| full == "1");
    let chosen = chosen(&arguments, &names, full)?;
    let machines = match arguments.test_threads {
        Some(machines) => machines,
        None => emulation::machines_at_once()?,
    };
    // What is chosen is chosen; each trial waits for its result on a thread of its own.
    (arguments.filter, arguments.skip) = (None, Vec::new());
    arguments.test_threads = Some(chosen.len().max(1));

    // For a list nothing is built, downloaded or run.
    if arguments.list || chosen.is_empty() {
        let trial = |(name, _)| Trial::test(name, || Err("a trial of a list does not run".into()));
        let trials = chosen.into_iter().map(trial).collect();
        return Ok(libtest_mimic::run(&arguments, trials).exit_code());
    }
    let bench = Bench::prepare(arch()?, names, full)?;
    let trial = |(name, job): &(String, Job)| {
        let result = bench.result_of(job);
        Trial::ignorable_test(name, move || {
            result
                .recv()
                .unwrap_or_else(|_| Err("the lab ended before this scenario ran".into()))
        })
    };
    let trials = chosen.iter().map(trial).collect();
    let queue = Queue::new(chosen.into_iter().map(|(_, job)| job).collect(), machines);
    let conclusion = thread::scope(|scope| {
        for _ in 0..machines {
            scope.spawn(|| bench.work(&queue));
        }
        libtest_mimic::run(&arguments, trials)
    });
    println!("{}", bench.times);
    Ok(conclusion.exit_code())
}

fn arch() -> Result<Arch> {
    let Ok(name) = env::var("NLMFO_LAB_ARCH") else {
        return Ok(Arch::HERE);
    };
    Arch::from_str(&name, false).map_err(|error| anyhow!("NLMFO_LAB_ARCH: {error}"))
}

fn kernel_names() -> Result<Vec<KernelName>> {
    env::var("NLMFO_LAB_KERNELS")
        .unwrap_or_else(|_| DEFAULT_KERNELS.into())
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_>>()
        .context("NLMFO_LAB_KERNELS")
}

/// Every scenario on each kernel that it runs on, less what the caller does not want, with
/// the names of the trials.
fn chosen(arguments: &Arguments, kernels: &[KernelName], full: bool) -> Result<Vec<(String, Job)>> {
    let wanted = env::var("NLMFO_LAB_SCENARIOS").unwrap_or_default();
    let wanted = named(&wanted)?;
    let mut chosen = Vec::new();
    for (kernel, kernel_name) in kernels.iter().enumerate() {
        let on_one = scenarios::on_one_machine().into_iter().map(|scenario| {
            let place = match scenario.machine {
                Machine::Shared => Place::Shared,
                Machine::Own(_) => Place::Own,
            };
            (scenario, place)
        });
        let on_a_cluster = scenarios::on_a_cluster().into_iter();
        let all = on_one.chain(on_a_cluster.map(|scenario| (scenario, Place::Cluster)));
        for (scenario, place) in all {
            // Three machines each: what differs between kernels the others have shown.
            let is_for_one = place == Place::Cluster || scenario.kernels != Kernels::All;
            let is_named = wanted.is_some() || arguments.filter.is_some();
            let is_left_out =
                !full && (is_for_one && kernel > 0 || scenario.only_full.is_some() && !is_named);
            let name = format!("{kernel_name}::{}", scenario.name);
            let is_wanted = wanted
                .as_ref()
                .is_none_or(|all| all.contains(&scenario.name));
            if is_wanted && !is_left_out && is_selected(arguments, &name) {
                let job = Job {
                    kernel,
                    scenario: scenario.name,
                    place,
                    manager: scenario.manager,
                    processors: emulation::processors(is_for_one || kernel > 0, full),
                    tries: 1,
                };
                chosen.push((name, job));
            }
        }
    }
    Ok(chosen)
}

/// The scenarios that these words name; `None` for no word.
fn named(words: &str) -> Result<Option<Vec<&'static str>>> {
    let all: Vec<&str> = scenarios::all().iter().map(|one| one.name).collect();
    let mut named = Vec::new();
    for word in words.split_whitespace() {
        let before = named.len();
        match all.iter().find(|name| **name == word) {
            Some(name) => named.push(*name),
            None => named.extend(all.iter().filter(|name| name.contains(word))),
        }
        ensure!(
            named.len() > before,
            "no scenario has {word:?} in its name; the scenarios are {}",
            all.join(", ")
        );
    }
    Ok((!named.is_empty()).then_some(named))
}

/// As libtest selects by its arguments.
fn is_selected(arguments: &Arguments, name: &str) -> bool {
    let matches = |pattern: &String| match arguments.exact {
        true => name == pattern,
        false => name.contains(pattern.as_str()),
    };
    arguments.filter.as_ref().is_none_or(matches) && !arguments.skip.iter().any(matches)
}
