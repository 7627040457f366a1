//! `cargo xtask lab …`: arguments and output.

use std::{
    ffi::OsString,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};

use super::{Clock, Cluster, KernelName, Lab, Manager, Outcome, Run, Stream};
use crate::arch::Arch;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a kernel, run a command in it, and return its output, status and files
    Run(RunArgs),
    /// Boot several machines: one driver, and one server on each of its interfaces
    Cluster(ClusterArgs),
    /// Boot a kernel and open a shell in it
    Shell(Machine),
    /// List the kernels that the archive offers now
    Kernels {
        /// List the kernels of this architecture
        #[arg(long, value_enum, default_value_t)]
        arch: Arch,
    },
}

#[derive(Debug, Args)]
pub struct Machine {
    /// Boot a machine of this architecture
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,

    /// Kernel to boot: a suite (bookworm-security), suite:version
    /// (bookworm-security:6.12.107), unlock-ip:broken, unlock-ip:works, or
    /// path/to/bzImage,path/to/modules (Image on arm64)
    #[arg(long, value_name = "KERNEL", default_value = "bookworm-security")]
    kernel: KernelName,

    /// Copy a file or directory of the host into the guest (repeatable)
    #[arg(long = "file", value_name = "HOST:GUEST", value_parser = parse_file)]
    files: Vec<(PathBuf, PathBuf)>,

    /// Memory of the guest, in MiB
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,

    /// Install Debian's bpftool and bpftrace in the guest
    #[arg(long)]
    bpf_tools: bool,

    /// Install this cluster manager in the guest
    #[arg(long, value_enum)]
    manager: Option<Manager>,

    /// Use one processor and a clock that advances one nanosecond per guest instruction, for
    /// measurements
    #[arg(long)]
    count_instructions: bool,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    #[command(flatten)]
    machine: Machine,

    /// Copy a file or directory of the guest to the host at the end (repeatable)
    #[arg(long = "collect", value_name = "GUEST")]
    collect: Vec<PathBuf>,

    /// Directory for the collected files
    #[arg(long, value_name = "DIR", default_value = ".")]
    into: PathBuf,

    /// Stop the guest after this many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    deadline: u64,

    /// Print the kernel console at the end
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

    /// Shell command of a server: the first on eth0, the second on eth1, … (repeatable)
    #[arg(long = "server", value_name = "COMMAND", required = true)]
    servers: Vec<String>,

    /// Size of a disk that all servers share: the first is /dev/vda, … (repeatable)
    #[arg(long = "disk", value_name = "MIB")]
    disks: Vec<u64>,
}

fn parse_file(text: &str) -> Result<(PathBuf, PathBuf), String> {
    match text.split_once(':') {
        Some((host, guest)) if !host.is_empty() && guest.starts_with('/') => {
            Ok((host.into(), guest.into()))
        }
        _ => Err("give HOST:GUEST, with an absolute path for GUEST".into()),
    }
}

/// Exits with the status of the guest's command, or 1 if the run itself failed.
pub fn execute(command: Command) -> Result<ExitCode> {
    match command {
        Command::Run(args) => run(args),
        Command::Cluster(args) => cluster(args),
        Command::Shell(machine) => {
            let lab = Lab::open(machine.arch)?;
            lab.shell(&machine.into_run(&lab, Vec::new())?)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Kernels { arch } => kernels(arch),
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
        run.manager = self.manager;
        if self.count_instructions {
            run.clock = Clock::Instructions;
        }
        Ok(run)
    }
}

fn run(args: RunArgs) -> Result<ExitCode> {
    let lab = Lab::open(args.machine.arch)?;
    let console = args.console;
    let run = args.into_run(&lab)?;
    let outcome = shown(|output| lab.run(&run, output))?;
    if console {
        eprintln!("{}", outcome.console_tail(usize::MAX));
    }
    exit(outcome.status()?, &outcome)
}

fn cluster(args: ClusterArgs) -> Result<ExitCode> {
    let lab = Lab::open(args.run.machine.arch)?;
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

/// Runs the guest and forwards the output of its command.
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
        Some(error) => Err(error).context("forward the command's output"),
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

fn kernels(arch: Arch) -> Result<ExitCode> {
    let lab = Lab::open(arch)?;
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
