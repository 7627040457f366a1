//! Time and peak memory of one command.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use serde::{Deserialize, Serialize};

/// What a command took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Measured {
    pub seconds: f64,
    /// Largest resident set, in KiB.
    pub peak_kib: i64,
}

impl Measured {
    /// Runs the command, its output thrown away, from a process of its own: the
    /// peak is that of all children so far.
    pub fn of(program: &Path, arguments: &[&str]) -> Result<Measured> {
        let output = Command::new("/proc/self/exe")
            .arg("measure")
            .arg("--")
            .arg(program)
            .args(arguments)
            .stderr(Stdio::inherit())
            .output()
            .context("cannot start a measuring process")?;
        ensure!(
            output.status.success(),
            "{} {arguments:?} could not be measured",
            program.display()
        );
        serde_json::from_slice(&output.stdout).context("the measuring process's answer")
    }
}

/// The measuring process: runs the command and prints [`Measured`] as JSON.
pub fn measure(command: &[String]) -> Result<()> {
    let (program, arguments) = command.split_first().context("nothing to measure")?;
    let began = Instant::now();
    let status = Command::new(program)
        .args(arguments)
        .stdout(Stdio::null())
        .status()
        .with_context(|| format!("cannot start {program}"))?;
    let seconds = began.elapsed().as_secs_f64();
    ensure!(status.success(), "{program}: {status}");
    let peak_kib = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    println!(
        "{}",
        serde_json::to_string(&Measured { seconds, peak_kib })?
    );
    Ok(())
}
