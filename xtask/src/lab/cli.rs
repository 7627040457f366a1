//! `cargo xtask lab …`: arguments, and printing what the lab says.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use super::{Clock, KernelName, Lab, Run, Stream};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a kernel, run a command in it, bring back output, status and files
    Run(RunArgs),
    /// A shell in a freshly booted kernel, on this terminal
    Shell(Machine),
    /// What kernels the archive offers now
    Kernels,
}

#[derive(Debug, Args)]
pub struct Machine {
    /// A suite (bookworm-security), suite:version (bookworm-security:6.12.107),
    /// unlock-ip:broken, unlock-ip:works, or path/to/bzImage,path/to/modules
    #[arg(long, value_name = "KERNEL", default_value = "bookworm-security")]
    kernel: KernelName,

    /// Put a file or folder of the host into the guest
    #[arg(long = "file", value_name = "HOST:GUEST", value_parser = parse_file)]
    files: Vec<(PathBuf, PathBuf)>,

    /// Memory of the guest
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,

    /// Have Debian's bpftool and bpftrace in the guest
    #[arg(long)]
    bpf_tools: bool,

    /// For measuring: one processor, and a clock that the guest's instructions
    /// drive, a nanosecond each
    #[arg(long)]
    count_instructions: bool,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    machine: Machine,

    /// Bring back a file or folder of the guest when the command has ended
    #[arg(long = "collect", value_name = "GUEST")]
    collect: Vec<PathBuf>,

    /// The folder that those are put below
    #[arg(long, value_name = "DIR", default_value = ".")]
    into: PathBuf,

    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    deadline: u64,

    /// Also show the kernel's console at the end
    #[arg(long)]
    console: bool,

    /// Program and arguments
    #[arg(required = true, last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

fn parse_file(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.split_once(':') {
        Some((host, guest)) if !host.is_empty() && guest.starts_with('/') => {
            Ok((host.into(), guest.into()))
        }
        _ => Err("give HOST:GUEST, the guest's path from / on".into()),
    }
}

/// Exits with the guest command's own status; 1 where the run itself failed.
pub fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run(args),
        Command::Shell(machine) => {
            let lab = Lab::open()?;
            lab.shell(&machine.into_run(&lab, Vec::new())?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Kernels => kernels(),
    }
}

impl Machine {
    fn into_run(self, lab: &Lab, command: Vec<OsString>) -> Result<Run> {
        let kernel = lab.kernel(&self.kernel)?;
        eprintln!("kernel {} ({})", kernel.release, self.kernel);
        let mut run = Run::new(kernel, command);
        run.files = self.files;
        run.memory = self.memory;
        run.bpf_tools = self.bpf_tools;
        if self.count_instructions {
            run.clock = Clock::Instructions;
        }
        Ok(run)
    }
}

fn run(args: RunArgs) -> Result<ExitCode> {
    let lab = Lab::open()?;
    let mut run = args.machine.into_run(&lab, args.command)?;
    run.collect = args.collect;
    run.collect_into = args.into;
    run.deadline = Duration::from_secs(args.deadline);
    let mut lost = None;
    let outcome = lab.run(&run, &mut |stream, bytes| {
        let written = match stream {
            Stream::Stdout => forward(io::stdout().lock(), bytes),
            Stream::Stderr => forward(io::stderr().lock(), bytes),
        };
        if let Err(error) = written {
            lost.get_or_insert(error);
        }
    })?;
    if args.console {
        eprintln!("{}", outcome.console_tail(usize::MAX));
    }
    let status = outcome.status()?;
    if let Some(error) = lost {
        return Err(error).context("pass on what the command wrote");
    }
    let boot = outcome.boot.unwrap_or_default();
    eprintln!(
        "exit status {status} after {:.1} s (boot {:.1} s)",
        outcome.duration.as_secs_f32(),
        boot.as_secs_f32()
    );
    Ok(u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from))
}

fn forward(mut to: impl io::Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

fn kernels() -> Result<ExitCode> {
    let lab = Lab::open()?;
    let mut out = io::stdout().lock();
    writeln!(
        out,
        "{:<44} {:<36} {:<10} HERE",
        "NAME", "RELEASE", "UNLOCK_IP"
    )?;
    for kernel in lab.kernels()? {
        writeln!(
            out,
            "{:<44} {:<36} {:<10} {}",
            kernel.name().to_string(),
            kernel.release,
            kernel.unlock_ip(),
            if lab.has(&kernel) { "yes" } else { "-" },
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(subcommand)]
        command: Command,
    }

    #[test]
    fn a_run_is_described_by_its_arguments() {
        let words = "lab run --kernel trixie --file a:/share/a --file b:/b --collect /tmp/x \
                     --memory 4096 --deadline 9 -- sh -c true";
        let cli = Cli::parse_from(words.split(' ').filter(|w| !w.is_empty()));
        let Command::Run(args) = cli.command else {
            panic!("{cli:?}")
        };
        assert_eq!(args.machine.kernel.to_string(), "trixie");
        assert_eq!(args.machine.files[1], ("b".into(), "/b".into()));
        assert_eq!(args.collect, [PathBuf::from("/tmp/x")]);
        assert_eq!((args.machine.memory, args.deadline), (4096, 9));
        assert_eq!(args.command, ["sh", "-c", "true"]);
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for words in [
            "lab run",
            "lab run --file a -- true",
            "lab run --file a:b -- true",
            "lab run --kernel nonesuch -- true",
        ] {
            assert!(Cli::try_parse_from(words.split(' ')).is_err(), "{words}");
        }
    }
}
