//! The program that is packaged.

#[path = "../../../nlmfo/build/paths.rs"]
mod paths;

use std::path::{Path, PathBuf};

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
        .env("RUSTFLAGS", paths::without_paths(&workspace_root()));
    let status = progress::step("building nlmfo for packages", || {
        cargo.status().context("start cargo")
    })?;
    ensure!(status.success(), "cargo build failed ({status})");
    Ok(target.join(triple).join(PROFILE).join("nlmfo"))
}
