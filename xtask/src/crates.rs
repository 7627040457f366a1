//! The crates that nlmfo is built of, by cargo.

use std::{env, path::PathBuf, process::Command};

use anyhow::Result;
use serde::Deserialize;

use crate::{apt, cache::workspace_root};

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub license: Option<String>,
    /// None of a crate of this workspace.
    pub source: Option<String>,
    pub manifest_path: PathBuf,
    pub authors: Vec<String>,
    pub repository: Option<String>,
}

/// Those that are built for a target triple.
pub fn packages(triple: &str) -> Result<Vec<Package>> {
    let mut cargo = cargo(&["metadata", "--format-version", "1", "--locked"]);
    let said = apt::run(cargo.args(["--filter-platform", triple]))?;
    let metadata: Metadata = serde_json::from_str(&said)?;
    Ok(metadata.packages)
}

/// cargo with these arguments, on this workspace.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(arguments).current_dir(workspace_root());
    cargo
}
