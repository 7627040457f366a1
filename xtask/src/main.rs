//! `cargo xtask …`: build, test, measure and demonstrate nlmfo.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use xtask::{
    arch::Arch,
    bench::{self, BenchArgs},
    build,
    cache::Cache,
    contracts::{self, ContractsArgs},
    demo::{self, DemoArgs},
    lab,
    package::{self, PackageArgs},
    picture::{self, PictureArgs},
    probe::{self, ProbeArgs},
    test::{self, TestArgs},
    toolchain::Toolchain,
};

#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", about)]
enum Task {
    /// Boot a kernel, release the locks of real clients and verify the release; or boot two servers,
    /// and move a VIP with NFSv4 clients between them
    Demo(DemoArgs),
    /// Run all checks: format, lints, tests, and the scenarios on real kernels
    Test(TestArgs),
    /// Build nlmfo and the lab's guest programs, and the toolchain if needed
    Build {
        /// Build with optimisation, for installation
        #[arg(long)]
        release: bool,
        /// Build for this architecture
        #[arg(long, value_enum, default_value_t)]
        arch: Arch,
    },
    /// Compare the kernel types that nlmfo uses with those of given kernels, without a boot
    Contracts(ContractsArgs),
    /// Boot kernels, run `nlmfo probe` in each, and print one table of the results
    Probe(ProbeArgs),
    /// Measure the cost of snapshots, counters, releases and the gate
    Bench(BenchArgs),
    /// Make a deb, an rpm and a tarball of nlmfo, and check them
    Package(PackageArgs),
    /// Draw the README's pictures from recordings
    Picture(PictureArgs),
    /// Boot distribution kernels with a real NFS server in QEMU
    #[command(subcommand)]
    Lab(lab::cli::Command),
    /// Prepare the compiler and the linker of the eBPF programs
    Toolchain,
    /// Run clippy on the eBPF programs and deny warnings
    LintEbpf {
        /// Build for this architecture
        #[arg(long, value_enum, default_value_t)]
        arch: Arch,
    },
}

fn main() -> ExitCode {
    execute(Task::parse()).unwrap_or_else(|error| {
        // Without the backtrace, which does not help the reader.
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
        Task::LintEbpf { arch } => Toolchain::prepare(&cache)?.lint_ebpf(arch)?,
        Task::Build { release, arch } => {
            let programs = build::workspace(&cache, arch, release)?;
            println!("built in {}", programs.display());
        }
        Task::Package(args) => return package::execute(&cache, &args),
        Task::Picture(args) => return picture::execute(&cache, &args),
        Task::Probe(args) => return probe::execute(&cache, &args),
        Task::Contracts(args) => return contracts::execute(&cache, &args),
        Task::Bench(args) => return bench::execute(&args),
        Task::Lab(command) => return lab::cli::execute(command),
    }
    Ok(ExitCode::SUCCESS)
}
