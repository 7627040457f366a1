//! The program that is packaged.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::OLDEST_GLIBC;
use crate::{
    apt, build,
    cache::{Cache, workspace_root},
    progress,
};

/// The profile of the workspace's Cargo.toml.
const PROFILE: &str = "dist";

/// In the Python package index.
const ZIG: [&str; 2] = ["cargo-zigbuild==0.24.1", "ziglang==0.17.1"];
/// Changes when they do.
const ENTRY: &str = "zig/1";

/// Builds nlmfo below `target` and returns its path.
pub fn program(cache: &Cache, target: &Path, native: bool) -> Result<PathBuf> {
    build::prepare(cache)?;
    let triple = triple();
    let mut cargo = build::cargo(cache);
    match native {
        true => {
            cargo.args(["build", "--target", &triple]);
        }
        false => {
            let zig = zig(cache)?;
            let path = env::var_os("PATH").unwrap_or_default();
            let mut folders = vec![zig.join("bin")];
            folders.extend(env::split_paths(&path));
            cargo
                .env("PATH", env::join_paths(folders)?)
                .env("PYTHONPATH", &zig)
                .env("CARGO_ZIGBUILD_CACHE_DIR", cache.dir("zig-cache")?)
                .args(["zigbuild", "--target"])
                .arg(format!("{triple}.{OLDEST_GLIBC}"));
        }
    }
    cargo
        .args(["--locked", "--package", "nlmfo", "--bin", "nlmfo"])
        .args(["--profile", PROFILE, "--target-dir"])
        .arg(target)
        .env("RUSTFLAGS", without_paths()?);
    let status = progress::step("building nlmfo for packages", || {
        cargo.status().context("start cargo")
    })?;
    ensure!(status.success(), "cargo build failed ({status})");
    Ok(target.join(triple).join(PROFILE).join("nlmfo"))
}

/// What the packages are for.
pub fn triple() -> String {
    format!("{}-unknown-linux-gnu", env::consts::ARCH)
}

/// Paths of this machine do not get into the program.
fn without_paths() -> Result<OsString> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cargo")));
    let mut flags = OsString::new();
    for (path, name) in [(home, "/cargo"), (Some(workspace_root()), "/nlmfo")] {
        let path = path.context("HOME is not set")?;
        flags.push("--remap-path-prefix=");
        flags.push(fs::canonicalize(&path).unwrap_or(path));
        flags.push(format!("={name} "));
    }
    Ok(flags)
}

/// cargo-zigbuild and zig, as Python packages.
fn zig(cache: &Cache) -> Result<PathBuf> {
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
    cache.once(ENTRY, install).context(
        "get zig, which links for older C libraries; it needs python3 with pip. --native links \
         with this machine's",
    )
}
