//! Runs several scenarios on one machine, each in its own process; the machine is reset between
//! them.

use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::emulation::scenario_deadline;
use crate::guest::sweep::{Fresh, Swept};
use crate::guest::wait::{Seen, until_for};
use crate::verdict::{Report, Verdict, heading};

/// Runs them and prints the report of each. Stops early, without an error, if the machine cannot
/// be used again.
pub fn run(names: &[String], full: bool, nlmfo: &Path) -> Result<()> {
    let fresh = Fresh::machine(nlmfo)?;
    let last = names.len() - 1;
    for (number, name) in names.iter().enumerate() {
        eprintln!("{}", heading(name));
        let mut report = in_a_process(name, full, nlmfo)?;
        let started = Instant::now();
        let swept = match number < last {
            true => fresh.sweep(),
            false => fresh.look_for_leftovers(),
        };
        report.sweep = started.elapsed().as_secs_f64();
        let is_usable = match swept {
            Ok(Swept::Clean) => true,
            Ok(Swept::Left(left)) => {
                eprintln!("left behind: {left}");
                if !matches!(report.verdict, Verdict::Fail(_)) {
                    report.verdict = Verdict::Fail(format!("the scenario left behind: {left}"));
                }
                false
            }
            Err(error) => {
                eprintln!("this machine cannot be used again: {error:#}");
                false
            }
        };
        println!("{}", report.to_line());
        io::stdout().flush()?;
        if !is_usable {
            return Ok(());
        }
    }
    Ok(())
}

/// Runs `lab-guest scenario`, and kills it if it hangs.
fn in_a_process(name: &str, full: bool, nlmfo: &Path) -> Result<Report> {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(env::current_exe()?);
    command.args(["scenario", name, "--nlmfo"]).arg(nlmfo);
    command.args(full.then_some("--full"));
    let out = tempfile::tempfile().context("a file for the report")?;
    let (started, busy_before) = (Instant::now(), busy()?);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting scenario {name}"))?;
    let ended = until_for(scenario_deadline(full), "the scenario to end", || {
        Ok(match child.try_wait()? {
            Some(status) => Seen::Yes(status),
            None => Seen::No("it runs".into()),
        })
    });
    let failed = |why: String| -> Result<Report> {
        Ok(Report {
            scenario: name.into(),
            kernel: String::new(),
            verdict: Verdict::Fail(why),
            seconds: started.elapsed().as_secs_f64(),
            busy: busy()? - busy_before,
            tool: 0.0,
            sweep: 0.0,
        })
    };
    let status = match ended {
        Ok(status) => status,
        Err(error) => {
            // A process that hangs in the kernel does not end by this: it is not waited for.
            let _ = killpg(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGKILL);
            return failed(format!("{error:#}"));
        }
    };
    let said = contents(out)?;
    match said.lines().find_map(Report::of_line) {
        Some(report) => Ok(report),
        None => failed(format!(
            "the scenario ended without a report: {status}\n{said}"
        )),
    }
}

fn contents(mut file: fs::File) -> Result<String> {
    use std::io::{Read as _, Seek as _};
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Processor seconds that this machine has used since its boot.
pub fn busy() -> Result<f64> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
    let all = stat.lines().next().unwrap_or_default();
    let times: Vec<f64> = all
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are within user.
    let idle: f64 = times.iter().skip(3).take(2).sum();
    let all: f64 = times.iter().take(8).sum();
    Ok((all - idle) / TICKS_PER_SECOND)
}
