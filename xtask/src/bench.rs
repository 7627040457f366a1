//! `cargo xtask bench`: what observing and releasing cost, measured in one
//! virtual machine by the guest program (`tests/src/bench`), in instructions
//! executed: an emulated machine's time is nobody's, and scatters by a third.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    build,
    cache::Cache,
    lab::{Clock, KernelName, Lab, Run, Stream},
};

/// 100,000 locks, LLVM for bpftrace, and both in memory.
const MEMORY: u32 = 4096;

const DEADLINE: Duration = Duration::from_secs(3600);

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// As for `lab run`; where unlock_ip works, both ways of release are
    /// measured
    #[arg(long, value_name = "KERNEL", default_value = "bookworm-security")]
    kernel: KernelName,

    /// Measure only these: lock-path, snapshot, release, gate, watch
    #[arg(value_name = "PART")]
    parts: Vec<String>,

    /// Measure in this machine's time, not in instructions executed
    #[arg(long)]
    host_clock: bool,

    /// Fewer and shorter rounds, and a tenth of the locks
    #[arg(long)]
    quick: bool,
}

/// JSON goes to standard output, progress and the table to standard error.
pub fn execute(args: &BenchArgs) -> Result<ExitCode> {
    let programs = build::workspace(&Cache::open()?, true)?;
    let lab = Lab::open()?;
    let kernel = lab.kernel(&args.kernel)?;
    eprintln!("kernel {} ({})", kernel.release, args.kernel);
    let clock = match args.host_clock {
        true => Clock::Host,
        false => Clock::Instructions,
    };
    let mut command = vec!["/lab-guest", "bench", "--clock", clock.name()];
    if args.quick {
        command.push("--quick");
    }
    command.extend(args.parts.iter().map(String::as_str));
    let mut run = Run::new(kernel, command);
    run.memory = MEMORY;
    run.bpf_tools = true;
    run.clock = clock;
    run.deadline = DEADLINE;
    run.files = ["nlmfo", "lab-guest"]
        .map(|program| (programs.join(program), format!("/{program}").into()))
        .into();
    let mut said = Vec::new();
    let outcome = lab.run(&run, &mut |stream, bytes| match stream {
        Stream::Stdout => said.extend_from_slice(bytes),
        // Progress is for whoever watches; nothing depends on it.
        Stream::Stderr => drop(io::stderr().lock().write_all(bytes)),
    })?;
    let status = outcome.status()?;
    io::stdout()
        .lock()
        .write_all(&said)
        .context("write the numbers")?;
    Ok(u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from))
}
