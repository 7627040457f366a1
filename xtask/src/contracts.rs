//! `cargo xtask contracts`: whether kernels have what nlmfo relies on, without booting
//! them. xtask takes the types and symbols out of a kernel's files; comparing is
//! nlmfo's (`nlmfo/src/kernel/contract`, through `nlmfo/examples/contracts.rs`).

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::{
    build,
    cache::Cache,
    lab::{self, KernelName},
};

#[derive(Debug, Args)]
pub struct ContractsArgs {
    /// A kernel as `cargo xtask lab run` names it (repeatable); its modules must be
    /// there unless lockd is built in
    #[arg(long, value_name = "KERNEL", default_value = "bookworm-security")]
    kernel: Vec<KernelName>,
}

/// Fails if a kernel has something otherwise.
pub fn execute(cache: &Cache, args: &ContractsArgs) -> Result<ExitCode> {
    Ok(match check(cache, &args.kernel)? {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Compares the kernels and prints what came of it, mismatches with both sides.
pub fn check(cache: &Cache, kernels: &[KernelName]) -> Result<bool> {
    build::prepare(cache)?;
    let mut cargo = build::cargo(cache);
    cargo.args(["run", "--quiet", "--locked", "--package", "nlmfo"]);
    cargo.args(["--example", "contracts", "--"]);
    for name in kernels {
        let (release, folder) = lab::types(cache, name)?;
        cargo.arg(release).arg(folder);
    }
    Ok(cargo.status().context("start cargo")?.success())
}
