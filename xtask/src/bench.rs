//! `cargo xtask bench`: the cost of observing and releasing. The guest program
//! (`tests/src/bench`) measures it in one virtual machine, in executed instructions: the
//! time of an emulated machine means little and varies by a third.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    arch::Arch,
    build,
    cache::Cache,
    lab::{Clock, KernelName, Lab, Run, Stream},
};

/// Enough for 100,000 locks and for bpftrace with LLVM.
const MEMORY: u32 = 4096;

const DEADLINE: Duration = Duration::from_hours(1);

#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Kernel, named as for `lab run`; if its `unlock_ip` works, both release methods are
    /// measured
    #[arg(long, value_name = "KERNEL", default_value = "bookworm-security")]
    kernel: KernelName,

    /// Measure only these parts: lock-path, snapshot, release, gate, watch
    #[arg(value_name = "PART")]
    parts: Vec<String>,

    /// Measure in this machine's time instead of executed instructions
    #[arg(long)]
    host_clock: bool,

    /// Run fewer and shorter rounds with a tenth of the locks
    #[arg(long)]
    quick: bool,

    /// Locks that the server holds, over all clients and VIPs
    #[arg(long)]
    locks: Option<u32>,

    /// Clients that hold them, per family
    #[arg(long)]
    clients: Option<u16>,
}

/// Writes JSON to standard output, progress and the table to standard error.
pub fn execute(args: &BenchArgs) -> Result<ExitCode> {
    let programs = build::workspace(&Cache::open()?, Arch::HERE, true)?;
    let lab = Lab::open(Arch::HERE)?;
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
    let numbers = [
        ("--locks", args.locks.map(|n| n.to_string())),
        ("--clients", args.clients.map(|n| n.to_string())),
    ];
    for (option, number) in &numbers {
        command.extend(number.iter().flat_map(|number| [option, number.as_str()]));
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
        // Only progress; nothing depends on it.
        Stream::Stderr => drop(io::stderr().lock().write_all(bytes)),
    })?;
    let status = outcome.status()?;
    io::stdout()
        .lock()
        .write_all(&said)
        .context("write the numbers")?;
    Ok(u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from))
}
