//! `cargo xtask contracts`: compares the types and functions that nlmfo uses with those of
//! given kernels, without booting them. xtask extracts them from the kernel's files; nlmfo
//! compares (`nlmfo/src/probe/contract`, through `nlmfo/examples/contracts.rs`).

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    arch::Arch,
    build,
    cache::Cache,
    lab::{self, KernelName},
};

#[derive(Debug, Args)]
pub struct ContractsArgs {
    /// Compare kernels of this architecture
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,

    /// Kernel, named as for `lab run` (repeatable); modules are required unless lockd is
    /// built in
    #[arg(long, value_name = "KERNEL", default_value = "bookworm-security")]
    kernel: Vec<KernelName>,
}

/// Fails if a kernel differs from what nlmfo expects.
pub fn execute(cache: &Cache, args: &ContractsArgs) -> Result<ExitCode> {
    Ok(match check(cache, args.arch, &args.kernel)? {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Compares the kernels and prints the result; a mismatch is printed with both sides.
pub fn check(cache: &Cache, arch: Arch, kernels: &[KernelName]) -> Result<bool> {
    build::prepare(cache)?;
    let mut cargo = build::cargo(cache);
    cargo.args(["run", "--quiet", "--locked", "--package", "nlmfo"]);
    cargo.args(["--example", "contracts", "--"]);
    for name in kernels {
        let (release, folder) = lab::types(cache, arch, name)?;
        cargo.arg(release).arg(folder);
    }
    Ok(cargo.status().context("start cargo")?.success())
}
