//! `cargo xtask …`: what a person or CI does with this workspace.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use xtask::{
    bench::{self, BenchArgs},
    build,
    cache::Cache,
    contracts::{self, ContractsArgs},
    demo::{self, DemoArgs},
    lab,
    picture::{self, PictureArgs},
    probe::{self, ProbeArgs},
    test::{self, TestArgs},
    toolchain::Toolchain,
};

#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", about)]
enum Task {
    /// The tool at its main job: locks of real clients released and proved gone
    Demo(DemoArgs),
    /// Every check: format, lints, tests, and the scenarios on real kernels
    Test(TestArgs),
    /// Build the tool and the lab's guest programs, and the toolchain if needed
    Build {
        /// Optimised, as it is installed
        #[arg(long)]
        release: bool,
    },
    /// Compare what nlmfo relies on with kernels' type information, without booting
    Contracts(ContractsArgs),
    /// Boot kernels, run `nlmfo probe` in each, and put what came of it into one table
    Probe(ProbeArgs),
    /// Measure what observing and releasing cost
    Bench(BenchArgs),
    /// The README's picture of `nlmfo watch`, from a recording
    Picture(PictureArgs),
    /// Distribution kernels with a real NFS server, in QEMU
    #[command(subcommand)]
    Lab(lab::cli::Command),
    /// Prepare the compiler and the linker of the eBPF programs
    Toolchain,
    /// Clippy for the eBPF programs, warnings denied
    LintEbpf,
}

fn main() -> ExitCode {
    execute(Task::parse()).unwrap_or_else(|error| {
        // Without a backtrace, which says nothing to an operator.
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn execute(task: Task) -> Result<ExitCode> {
    let cache = Cache::open()?;
    match task {
        Task::Demo(args) => return demo::execute(&cache, args),
        Task::Test(args) => return test::execute(&cache, &args),
        Task::Toolchain => println!("{}", Toolchain::prepare(&cache)?.describe()?),
        Task::LintEbpf => Toolchain::prepare(&cache)?.lint_ebpf()?,
        Task::Build { release } => {
            let programs = build::workspace(&cache, release)?;
            println!("built in {}", programs.display());
        }
        Task::Picture(args) => return picture::execute(&cache, &args),
        Task::Probe(args) => return probe::execute(&cache, &args),
        Task::Contracts(args) => return contracts::execute(&cache, &args),
        Task::Bench(args) => return bench::execute(&args),
        Task::Lab(command) => return lab::cli::execute(command),
    }
    Ok(ExitCode::SUCCESS)
}
