//! Builds nlmfo, with the eBPF programs in it, and the lab's guest program.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    cache::{Cache, workspace_root},
    toolchain::Toolchain,
};

/// Prepares the eBPF toolchain if needed, builds, and returns the directory of the programs.
pub fn workspace(cache: &Cache, release: bool) -> Result<PathBuf> {
    prepare(cache)?;
    let mut cargo = cargo(cache);
    cargo
        .args(["build", "--locked"])
        .args(["--package", "nlmfo", "--package", "nlmfo-tests"]);
    match release {
        true => cargo.arg("--release"),
        // With the features that the tests use; otherwise cargo builds nlmfo twice.
        false => cargo.args(["--bins", "--examples"]),
    };
    let status = cargo.status().context("start cargo")?;
    ensure!(status.success(), "cargo build failed ({status})");
    Ok(target_dir().join(if release { "release" } else { "debug" }))
}

/// Prepares the eBPF toolchain, which the build of nlmfo needs, unless `NLMFO_EBPF_ELF`
/// names built objects.
pub fn prepare(cache: &Cache) -> Result<()> {
    if env::var_os("NLMFO_EBPF_ELF").is_none_or(|elf| elf.is_empty()) {
        Toolchain::prepare(cache)?;
    }
    Ok(())
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    let root = workspace_root();
    match env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root.join(dir),
        None => root.join("target"),
    }
}

/// A cargo command in the workspace, with the toolchain of this cache.
///
/// `NLMFO_CACHE` is not set for the default cache: cargo rebuilds when the variable
/// appears or disappears.
pub fn cargo(cache: &Cache) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace_root());
    if cache.root() != workspace_root().join("target/lab") {
        cargo.env("NLMFO_CACHE", cache.root());
    }
    cargo
}
