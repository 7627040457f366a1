//! The lab's program inside the virtual machine: runs scenarios, and is the
//! lockers and namespace holders that they need.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use nix::sys::utsname::uname;
use nlmfo_tests::bench::{self, Clock, Effort, Part};
use nlmfo_tests::cluster::{agent, node};
use nlmfo_tests::demo;
use nlmfo_tests::guest::{busy, locker, node as testnode, reboot, tool};
use nlmfo_tests::picture;
use nlmfo_tests::scenarios::{self, Context, End};
use nlmfo_tests::several;
use nlmfo_tests::verdict::{Report, Verdict};

#[derive(Parser)]
#[command(about, version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run one scenario and print its report as one JSON line
    Scenario {
        name: String,
        /// Run the long form, if the scenario has one
        #[arg(long)]
        full: bool,
        /// nlmfo binary under test
        #[arg(long, default_value = "/nlmfo")]
        nlmfo: PathBuf,
    },
    /// Run several scenarios on this machine and print the report of each; stop early if the
    /// machine cannot be reset
    Scenarios {
        #[arg(required = true)]
        names: Vec<String>,
        /// Run the long forms
        #[arg(long)]
        full: bool,
        /// nlmfo binary under test
        #[arg(long, default_value = "/nlmfo")]
        nlmfo: PathBuf,
    },
    /// Measure the cost of snapshots, counters, releases and the gate
    Bench {
        /// Parts to measure [default: all]
        parts: Vec<Part>,
        #[arg(long)]
        quick: bool,
        /// Locks that are held
        #[arg(long)]
        locks: Option<u32>,
        /// Clients that hold them
        #[arg(long)]
        clients: Option<u16>,
        /// What this machine's clock runs by
        #[arg(long, value_enum)]
        clock: Clock,
        /// nlmfo binary under test
        #[arg(long, default_value = "/nlmfo")]
        nlmfo: PathBuf,
    },
    /// Time and peak memory of a command (used by bench)
    #[command(hide = true)]
    Measure {
        #[arg(required = true, last = true)]
        command: Vec<String>,
    },
    /// Time and peak memory of a snapshot (used by bench)
    #[command(hide = true)]
    Snapshot,
    /// List the scenarios
    List,
    /// Show what the tool does, and check it against the kernel's own list
    Demo {
        /// Move a VIP that is a server of its own between the servers of a cluster
        #[arg(long)]
        nfsv4: bool,
        /// Record both nodes and the clients during the move in this file
        #[arg(long, requires = "nfsv4")]
        record: Option<PathBuf>,
        /// The tool to show
        #[arg(long, default_value = "/nlmfo")]
        nlmfo: PathBuf,
    },
    /// Print a recording of `nlmfo watch` during a failover
    Record {
        /// The tool that records
        #[arg(long, default_value = "/nlmfo")]
        nlmfo: PathBuf,
    },
    /// Tell a client that its server has rebooted (used by scenarios)
    #[command(hide = true)]
    Reboot {
        client: IpAddr,
        state: u32,
        /// The server's address, which the client knows it by
        vip: IpAddr,
    },
    /// Be a server of a cluster: NFS and lockd without an export, and the agent
    #[command(hide = true)]
    Node { name: String, address: IpAddr },
    /// Run a shell command on a machine of the cluster, as ssh does
    Rsh {
        /// Not by the shell there: a program and its arguments as they are
        #[arg(long)]
        exact: bool,
        host: IpAddr,
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Hold locks as told on standard input (used by scenarios)
    #[command(hide = true)]
    Locker,
    /// Ask for locks until standard input ends (used by scenarios)
    #[command(hide = true)]
    Busy { wanted: String },
    /// Hold a namespace until standard input ends (used by scenarios)
    #[command(hide = true)]
    Hold { name: String },
}

fn main() -> Result<ExitCode> {
    match Arguments::parse().command {
        Command::Scenario { name, full, nlmfo } => scenario(&name, full, nlmfo),
        Command::Scenarios { names, full, nlmfo } => {
            several::run(&names, full, &nlmfo).map(|()| ExitCode::SUCCESS)
        }
        Command::Bench {
            parts,
            quick,
            locks,
            clients,
            clock,
            nlmfo,
        } => {
            let effort = match quick {
                true => Effort::quick(),
                false => Effort::full(),
            };
            let effort = effort.holding(locks, clients);
            bench::run(&nlmfo, &parts, effort, clock).map(|()| ExitCode::SUCCESS)
        }
        Command::Measure { command } => bench::measure(&command).map(|()| ExitCode::SUCCESS),
        Command::Snapshot => bench::take_snapshot().map(|()| ExitCode::SUCCESS),
        Command::List => {
            for scenario in scenarios::all() {
                println!("{:24} {}", scenario.name, scenario.claim);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Demo {
            nfsv4,
            record,
            nlmfo,
        } => {
            let shown = match nfsv4 {
                true => demo::nfsv4::run(&nlmfo, record.as_deref()),
                false => demo::run(&nlmfo),
            };
            Ok(match shown {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            })
        }
        Command::Record { nlmfo } => {
            print!("{}", picture::record(&nlmfo)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::Reboot { client, state, vip } => {
            reboot::tell(client, vip, state).map(|()| ExitCode::SUCCESS)
        }
        Command::Node { name, address } => node::serve(&name, address).map(|()| ExitCode::SUCCESS),
        Command::Rsh {
            exact,
            host,
            command,
        } => Ok(rsh(exact, host, command)),
        Command::Locker => locker::serve().map(|()| ExitCode::SUCCESS),
        Command::Busy { wanted } => busy::serve(&wanted).map(|()| ExitCode::SUCCESS),
        Command::Hold { name } => testnode::hold(&name).map(|()| ExitCode::SUCCESS),
    }
}

/// Exits as the command does; [`agent::UNREACHABLE`] where it could not be run to its end.
fn rsh(exact: bool, host: IpAddr, command: Vec<String>) -> ExitCode {
    let words = match exact {
        true => command,
        false => vec!["sh".into(), "-c".into(), command.join(" ")],
    };
    let status = agent::call(host, &words).unwrap_or_else(|error| {
        eprintln!("rsh {host}: {error:#}");
        agent::UNREACHABLE
    });
    u8::try_from(status).map_or(ExitCode::FAILURE, ExitCode::from)
}

/// Exits 0 for passed or unsupported, 1 for failed.
fn scenario(name: &str, full: bool, nlmfo: PathBuf) -> Result<ExitCode> {
    let scenario = scenarios::all()
        .into_iter()
        .find(|scenario| scenario.name == name)
        .with_context(|| format!("no scenario {name:?}; `lab-guest list` names them"))?;
    let kernel = uname()?.release().to_string_lossy().into_owned();
    let context = Context {
        nlmfo,
        kernel,
        full,
    };
    let started = Instant::now();
    let busy = several::busy()?;
    let verdict = match (scenario.run)(&context) {
        Ok(End::Pass) => Verdict::Pass,
        Ok(End::Unsupported(reason)) => Verdict::Unsupported(reason),
        Err(error) => Verdict::Fail(format!("{error:#}")),
    };
    let failed = matches!(verdict, Verdict::Fail(_));
    let report = Report {
        scenario: name.into(),
        kernel: context.kernel,
        verdict,
        seconds: started.elapsed().as_secs_f64(),
        busy: several::busy()? - busy,
        tool: tool::seconds(),
        sweep: 0.0,
    };
    println!("{}", report.to_line());
    Ok(ExitCode::from(u8::from(failed)))
}
