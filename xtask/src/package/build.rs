//! The program that is packaged.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    arch::Arch,
    build,
    cache::{Cache, workspace_root},
    progress, zig,
};

/// The profile of the workspace's Cargo.toml.
const PROFILE: &str = "dist";

/// Builds nlmfo below `target` and returns its path.
pub fn program(cache: &Cache, target: &Path, arch: Arch, native: bool) -> Result<PathBuf> {
    build::prepare(cache)?;
    let triple = arch.triple();
    let mut cargo = match native {
        true => {
            let mut cargo = build::cargo(cache);
            cargo.args(["build", "--target", &triple]);
            cargo
        }
        false => zig::build(cache, arch)?,
    };
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
