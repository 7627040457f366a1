//! `cargo xtask picture`: draws the README's picture of `nlmfo watch` from a recording of a
//! real failover.

use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::{
    arch::Arch,
    build,
    cache::{Cache, workspace_root},
    lab::{KernelName, Lab, Run, Stream},
};

const RECORDING: &str = "docs/watch.jsonl";
const PICTURE: &str = "docs/watch.svg";

const DEADLINE: Duration = Duration::from_mins(5);

#[derive(Debug, Args)]
pub struct PictureArgs {
    /// Make a new recording in the lab first
    #[arg(long)]
    record: bool,
    /// Kernel to record on, named as for `lab run`
    #[arg(long, value_name = "KERNEL", default_value = "bookworm-security")]
    kernel: KernelName,
}

/// Writes the picture, and the recording if requested.
pub fn execute(cache: &Cache, args: &PictureArgs) -> Result<ExitCode> {
    let [recording, picture] = [RECORDING, PICTURE].map(|file| workspace_root().join(file));
    if args.record {
        record(cache, &args.kernel, &recording)?;
    }
    let status = build::cargo(cache)
        .args(["run", "--locked", "--package", "nlmfo"])
        .args(["--example", "picture", "--"])
        .args([&recording, &picture])
        .status()
        .context("start cargo")?;
    ensure!(status.success(), "drawing the picture failed ({status})");
    eprintln!("{}", picture.display());
    Ok(ExitCode::SUCCESS)
}

fn record(cache: &Cache, kernel: &KernelName, recording: &PathBuf) -> Result<()> {
    let programs = build::workspace(cache, Arch::HERE, false)?;
    let lab = Lab::open(Arch::HERE)?;
    let mut run = Run::new(lab.kernel(kernel)?, ["/lab-guest", "record"]);
    run.deadline = DEADLINE;
    run.files = ["nlmfo", "lab-guest"]
        .map(|program| (programs.join(program), format!("/{program}").into()))
        .into();
    let mut ticks = Vec::new();
    let outcome = lab.run(&run, &mut |stream, bytes| match stream {
        Stream::Stdout => ticks.extend_from_slice(bytes),
        // Only progress; nothing depends on it.
        Stream::Stderr => drop(io::stderr().lock().write_all(bytes)),
    })?;
    let status = outcome.status()?;
    ensure!(status == 0, "recording in the lab failed ({status})");
    fs::write(recording, ticks).with_context(|| recording.display().to_string())
}
