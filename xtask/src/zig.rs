//! Linking with zig, which has the C library of every architecture and the symbols of each of
//! its versions: for older systems, and for other processors.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use crate::{apt, arch::Arch, build, cache::Cache, package::Glibc, progress};

/// The C library of Debian 10 and RHEL 8.
pub const OLDEST_GLIBC: Glibc = Glibc(2, 28);

/// In the Python package index.
const ZIG: [&str; 2] = ["cargo-zigbuild==0.24.1", "ziglang==0.17.1"];
/// Changes when they do.
const ENTRY: &str = "zig/1";

/// `cargo zigbuild` for this architecture and the oldest C library.
pub fn build(cache: &Cache, arch: Arch) -> Result<Command> {
    standard_library(arch)?;
    let zig = get(cache)?;
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders = vec![zig.join("bin")];
    folders.extend(env::split_paths(&path));
    let mut cargo = build::cargo(cache);
    cargo
        .env("PATH", env::join_paths(folders)?)
        .env("PYTHONPATH", &zig)
        .env("CARGO_ZIGBUILD_CACHE_DIR", cache.dir("zig-cache")?)
        .args(["zigbuild", "--target"])
        .arg(format!("{}.{OLDEST_GLIBC}", arch.triple()));
    Ok(cargo)
}

/// Rust's standard library for another architecture than this machine's.
fn standard_library(arch: Arch) -> Result<()> {
    let triple = arch.triple();
    let mut rustc = build::tool("RUSTC", "rustc");
    rustc.args(["--print", "target-libdir", "--target", &triple]);
    if Path::new(apt::run(&mut rustc)?.trim()).exists() {
        return Ok(());
    }
    let mut rustup = Command::new("rustup");
    rustup.args(["target", "add", &triple]);
    progress::step("getting Rust's standard library", || apt::run(&mut rustup))
        .map(drop)
        .with_context(|| {
            format!(
                "{arch} needs Rust's standard library for {triple}, which rustup brings where it \
                 can download"
            )
        })
}

/// cargo-zigbuild and zig, as Python packages.
fn get(cache: &Cache) -> Result<PathBuf> {
    let install = |to: &Path| {
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "install", "--quiet", "--no-compile"])
            .args([
                "--disable-pip-version-check",
                "--root-user-action=ignore",
                "--target",
            ])
            .arg(to)
            .args(ZIG);
        progress::step("getting zig", || apt::run(&mut pip)).map(drop)
    };
    cache
        .once(ENTRY, install)
        .context("get zig, which links for older C libraries and other processors; it needs python3 with pip")
}
