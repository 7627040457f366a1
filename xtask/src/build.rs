//! Builds what the lab and the operator run: the tool with the kernel side in
//! it, and the guest program of the scenarios.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cache::{Cache, workspace_root},
    toolchain::Toolchain,
};

/// Prepares the eBPF toolchain where it is needed, builds, and returns the
/// folder with the programs.
pub fn workspace(cache: &Cache, release: bool) -> Result<PathBuf> {
    prepare(cache)?;
    let mut cargo = cargo(cache);
    cargo
        .args(["build", "--locked"])
        .args(["--package", "nlmfo", "--package", "nlmfo-tests"]);
    match release {
        true => cargo.arg("--release"),
        // With the features that tests have, or all of nlmfo is built twice.
        false => cargo.args(["--bins", "--examples"]),
    };
    let status = cargo.status().context("start cargo")?;
    ensure!(status.success(), "cargo build failed ({status})");
    Ok(target_dir().join(if release { "release" } else { "debug" }))
}

/// Prepares the eBPF toolchain, without which nlmfo does not build, unless ready-made
/// objects are named.
pub fn prepare(cache: &Cache) -> Result<()> {
    if env::var_os("NLMFO_EBPF_ELF").is_none_or(|elf| elf.is_empty()) {
        Toolchain::prepare(cache)?;
    }
    Ok(())
}

/// Where cargo puts what it builds here.
pub fn target_dir() -> PathBuf {
    let root = workspace_root();
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root.join(dir),
        None => root.join("target"),
    }
}

/// cargo in the workspace, with the toolchain of this cache.
///
/// The cache that `nlmfo/build.rs` looks into anyway is not named: a variable
/// that comes and goes makes cargo build anew.
pub fn cargo(cache: &Cache) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace_root());
    if cache.root() != workspace_root().join("target/lab") {
        cargo.env("NLMFO_CACHE", cache.root());
    }
    cargo
}
