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

use super::{Clock, Cluster, KernelName, Lab, Outcome, Run, Stream};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a kernel, run a command in it, bring back output, status and files
    Run(RunArgs),
    /// Boot several: a command in the driver, with a server on each of its interfaces
    Cluster(ClusterArgs),
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

#[derive(Debug, Args)]
pub struct ClusterArgs {
    #[command(flatten)]
    run: RunArgs,

    /// A server's command, for its shell: one for eth0, the next for eth1, …
    #[arg(long = "server", value_name = "COMMAND", required = true)]
    servers: Vec<String>,

    /// A disk that all servers share: /dev/vda, the next /dev/vdb, …
    #[arg(long = "disk", value_name = "MIB")]
    disks: Vec<u64>,
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
        Command::Cluster(args) => cluster(args),
        Command::Shell(machine) => {
            let lab = Lab::open()?;
            lab.shell(&machine.into_run(&lab, Vec::new())?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Kernels => kernels(),
    }
}

impl RunArgs {
    fn into_run(self, lab: &Lab) -> Result<Run> {
        let mut run = self.machine.into_run(lab, self.command)?;
        run.collect = self.collect;
        run.collect_into = self.into;
        run.deadline = Duration::from_secs(self.deadline);
        Ok(run)
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
    let console = args.console;
    let run = args.into_run(&lab)?;
    let outcome = shown(|output| lab.run(&run, output))?;
    if console {
        eprintln!("{}", outcome.console_tail(usize::MAX));
    }
    exit(outcome.status()?, &outcome)
}

fn cluster(args: ClusterArgs) -> Result<ExitCode> {
    let lab = Lab::open()?;
    let console = args.run.console;
    let driver = args.run.into_run(&lab)?;
    let server = |command: &String| {
        let mut run = driver.clone();
        run.command = ["sh", "-c", command].map(OsString::from).into();
        run
    };
    let cluster = Cluster {
        servers: args.servers.iter().map(server).collect(),
        disks: args.disks.iter().map(|mib| mib << 20).collect(),
        driver,
    };
    let outcome = shown(|output| lab.run_cluster(&cluster, output))?;
    for (number, server) in outcome.servers.iter().enumerate() {
        eprint!("{}", String::from_utf8_lossy(&server.stdout));
        eprint!("{}", String::from_utf8_lossy(&server.stderr));
        if console {
            eprintln!("{}", server.console_tail(usize::MAX));
        }
        eprintln!("server {number}: {}", server.ending);
    }
    if console {
        eprintln!("{}", outcome.driver.console_tail(usize::MAX));
    }
    exit(outcome.status()?, &outcome.driver)
}

/// Does a run, and passes on what its command writes.
fn shown<T>(run: impl FnOnce(&mut dyn FnMut(Stream, &[u8])) -> Result<T>) -> Result<T> {
    let mut lost = None;
    let outcome = run(&mut |stream, bytes| {
        let written = match stream {
            Stream::Stdout => forward(io::stdout().lock(), bytes),
            Stream::Stderr => forward(io::stderr().lock(), bytes),
        };
        if let Err(error) = written {
            lost.get_or_insert(error);
        }
    })?;
    match lost {
        Some(error) => Err(error).context("pass on what the command wrote"),
        None => Ok(outcome),
    }
}

fn exit(status: i32, outcome: &Outcome) -> Result<ExitCode> {
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
