//! Builds nlmfo, with the eBPF programs in it, and the lab's guest program.

use std::{env, path::PathBuf, process::Command};

use anyhow::{Context as _, Result, ensure};

use crate::{
    arch::Arch,
    cache::{Cache, workspace_root},
    toolchain::Toolchain,
    zig,
};

/// Prepares the eBPF toolchain if needed, builds, and returns the directory of the programs.
///
/// For another architecture than this machine's, zig links, and the programs have no debug
/// information: this machine's `strip` cannot take it out for the lab.
pub fn workspace(cache: &Cache, arch: Arch, release: bool) -> Result<PathBuf> {
    prepare(cache)?;
    let mut target = target_dir();
    let mut cargo = match arch {
        Arch::HERE => {
            let mut cargo = cargo(cache);
            cargo.arg("build");
            cargo
        }
        _ => {
            target.push(arch.triple());
            let mut cargo = zig::build(cache, arch)?;
            cargo.env("CARGO_PROFILE_DEV_STRIP", "debuginfo");
            cargo
        }
    };
    cargo
        .arg("--locked")
        .args(["--package", "nlmfo", "--package", "nlmfo-tests"]);
    match release {
        true => cargo.arg("--release"),
        // With the features that the tests use; otherwise cargo builds nlmfo twice.
        false => cargo.args(["--bins", "--examples"]),
    };
    let status = cargo.status().context("start cargo")?;
    ensure!(status.success(), "cargo build failed ({status})");
    Ok(target.join(if release { "release" } else { "debug" }))
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
    let mut cargo = tool("CARGO", "cargo");
    cargo.current_dir(workspace_root());
    if cache.root() != workspace_root().join("target/lab") {
        cargo.env("NLMFO_CACHE", cache.root());
    }
    cargo
}

/// A program of the Rust toolchain, from the variable that names it, else by its name.
pub fn tool(variable: &str, name: &str) -> Command {
    Command::new(env::var_os(variable).unwrap_or_else(|| name.into()))
}
