//! `cargo xtask …`: what a person or CI does with this workspace.

use anyhow::Result;
use clap::Parser;
use xtask::{build, cache::Cache, toolchain::Toolchain};

#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", about)]
enum Task {
    /// Prepare the compiler and the linker of the eBPF programs
    Toolchain,
    /// Clippy for the eBPF programs, warnings denied
    LintEbpf,
    /// Build the tool and the lab's guest programs, and the toolchain if needed
    Build {
        /// Optimised, as it is installed
        #[arg(long)]
        release: bool,
    },
}

fn main() -> Result<()> {
    let task = Task::parse();
    let cache = Cache::open()?;
    match task {
        Task::Toolchain => println!("{}", Toolchain::prepare(&cache)?.describe()?),
        Task::LintEbpf => Toolchain::prepare(&cache)?.lint_ebpf()?,
        Task::Build { release } => {
            let programs = build::workspace(&cache, release)?;
            println!("built in {}", programs.display());
        }
    }
    Ok(())
}
