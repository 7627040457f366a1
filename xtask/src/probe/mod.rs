//! `cargo xtask probe`: runs `nlmfo probe` on several kernels of the lab and prints one table
//! of the results.

mod junit;
mod matrix;
mod report;

use std::{
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use nlmfo_common::probe::Report;

use self::{
    matrix::{Kernel, Matrix, Outcome},
    report::parse,
};
use crate::{
    arch::Arch,
    build,
    cache::Cache,
    lab::{self, Ending, KernelName, Lab, Run, Stream},
};

/// Exit statuses of `nlmfo probe` with a report: all passed, some failed.
const WITH_REPORT: [i32; 2] = [0, 3];

/// Maximum runs per kernel, in case the emulator fails.
const TRIES: u32 = 3;

#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// Boot machines of this architecture
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,

    /// Kernel, named as for `lab run` (repeatable)
    #[arg(
        long,
        value_name = "KERNEL",
        default_values = ["bookworm-security", "trixie", "trixie-backports"]
    )]
    kernel: Vec<KernelName>,

    /// Directory for probe.md, probe.xml and probe.json [default: target/probe]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Number of kernels to run in parallel [default: the number of cores]
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,

    /// Stop a kernel after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 900)]
    deadline: u64,

    /// Arguments for nlmfo probe, as in `-- --only unlock-procfs-ipv4`
    #[arg(last = true, value_name = "ARGUMENT")]
    arguments: Vec<String>,
}

/// Fails if a check failed without a known bug, or a kernel gave no report.
pub fn execute(cache: &Cache, args: &ProbeArgs) -> Result<ExitCode> {
    let programs = build::workspace(cache, args.arch, false)?;
    let lab = Lab::open(args.arch)?;
    let mut runs = Vec::new();
    for name in &args.kernel {
        runs.push(machine(args, &programs, lab.kernel(name)?));
    }
    let cores = thread::available_parallelism().map_or(1, usize::from);
    let jobs = args.jobs.unwrap_or(cores).clamp(1, runs.len());
    let matrix = Matrix::new(side_by_side(jobs, &runs, |run| probed(&lab, run)));

    let out = (args.out.clone()).unwrap_or_else(|| build::target_dir().join("probe"));
    write(&matrix, &out)?;
    print!("{matrix}");
    eprintln!("{}", out.display());
    Ok(match matrix.unexpected() {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

fn machine(args: &ProbeArgs, programs: &Path, kernel: lab::Kernel) -> Run {
    let command = ["/nlmfo", "probe", "--format", "json"].map(str::to_owned);
    let mut run = Run::new(kernel, command.into_iter().chain(args.arguments.clone()));
    run.files = vec![(programs.join("nlmfo"), "/nlmfo".into())];
    run.deadline = Duration::from_secs(args.deadline);
    run
}

/// Runs `work` on each item with up to `jobs` threads; results are in the items' order.
fn side_by_side<T: Sync, R: Send>(
    jobs: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let rest = Mutex::new(items.iter().enumerate());
    let next = || rest.lock().unwrap_or_else(PoisonError::into_inner).next();
    let worker = || {
        let mut done = Vec::new();
        while let Some((at, item)) = next() {
            done.push((at, work(item)));
        }
        done
    };
    let mut results: Vec<(usize, R)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(worker)).collect();
        (workers.into_iter())
            .flat_map(|worker| worker.join().expect("a worker does not panic"))
            .collect()
    });
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

fn probed(lab: &Lab, run: &Run) -> Kernel {
    let kernel = &run.kernel;
    eprintln!("booting {} ({}) …", kernel.release, kernel.name);
    let outcome = match report(lab, run) {
        Ok(report) => Outcome::Report(report),
        Err(error) => Outcome::Error(format!("{error:#}")),
    };
    eprintln!("{}: {outcome}", kernel.release);
    Kernel {
        name: kernel.name.to_string(),
        release: kernel.release.clone(),
        outcome,
    }
}

fn report(lab: &Lab, run: &Run) -> Result<Report> {
    let mut tries = 1;
    let outcome = loop {
        let mut progress = Prefixed::new(&run.kernel.release);
        let outcome = lab.run(run, &mut |stream, bytes| {
            if stream == Stream::Stderr {
                progress.push(bytes);
            }
        })?;
        if !outcome.is_emulators_fault() || tries == TRIES {
            break outcome;
        }
        eprintln!(
            "{}: the emulator failed, not the kernel; trying again",
            run.kernel.release
        );
        tries += 1;
    };
    let Ending::Exited(status) = outcome.ending else {
        bail!(
            "{} after {:.0} s\n{}",
            outcome.ending,
            outcome.duration.as_secs_f32(),
            outcome.console_tail(60)
        );
    };
    if !WITH_REPORT.contains(&status) {
        let said = String::from_utf8_lossy(&outcome.stderr);
        bail!("nlmfo probe ended with status {status}\n{}", said.trim());
    }
    parse(&outcome.stdout)
}

/// Passes on what several machines say, line by line, each with its kernel.
struct Prefixed<'a> {
    prefix: &'a str,
    line: Vec<u8>,
}

impl<'a> Prefixed<'a> {
    fn new(prefix: &'a str) -> Self {
        Prefixed {
            prefix,
            line: Vec::new(),
        }
    }

    fn push(&mut self, bytes: &[u8]) {
        self.line.extend_from_slice(bytes);
        while let Some(end) = self.line.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.line.drain(..=end).collect();
            let line = format!("{}: {}", self.prefix, String::from_utf8_lossy(&line));
            // Only progress; nothing depends on it.
            drop(io::stderr().lock().write_all(line.as_bytes()));
        }
    }
}

fn write(matrix: &Matrix, out: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("create {}", out.display()))?;
    let json = serde_json::to_string_pretty(matrix).context("write JSON")? + "\n";
    let files = [
        ("probe.md", matrix.to_string()),
        ("probe.xml", junit::xml(matrix)?),
        ("probe.json", json),
    ];
    for (name, text) in files {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    #[test]
    fn items_run_side_by_side_and_come_back_in_order() {
        // Two of them wait for each other.
        let both = Barrier::new(2);
        let doubled = side_by_side(2, &[1, 2], |item| {
            both.wait();
            item * 2
        });
        assert_eq!(doubled, [2, 4]);
        assert_eq!(side_by_side(1, &[3, 4, 5], |item| *item), [3, 4, 5]);
    }

    #[test]
    fn what_is_written_can_be_read_again() {
        let out = tempfile::tempdir().unwrap();
        write(&matrix::tests::sample(), out.path()).unwrap();
        let json = fs::read(out.path().join("probe.json")).unwrap();
        let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(json["schema"], "nlmfo.probe-matrix/1");
        assert_eq!(json["kernels"][1]["report"]["checks"][0]["verdict"], "pass");
        for name in ["probe.md", "probe.xml"] {
            assert!(out.path().join(name).metadata().unwrap().len() > 0);
        }
    }
}
