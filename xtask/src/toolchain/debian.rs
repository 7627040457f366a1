//! The compiler from Debian: `rustc-web`, which bookworm's security suite updates for its browsers,
//! with the standard library for the host and for BPF.
//!
//! It runs on bookworm and on everything with a newer glibc.

use std::{fs, os::unix::fs::symlink, path::Path};

use anyhow::{Context as _, Result};

use super::find_file;
use crate::{
    apt::{self, Apt, Suite},
    cache::Cache,
    progress,
};

/// The suites of the compiler and of its dependencies.
const SUITES: [Suite; 2] = [Suite::Bookworm, Suite::BookwormSecurity];

/// All from one source package, so of one version.
const PACKAGES: [&str; 3] = ["rustc-web", "libstd-rust-web-dev-bpf", "rust-web-clippy"];

/// Packages that every machine that can link a Rust program has already.
const PROVIDED: [&str; 6] = [
    "binutils",
    "gcc",
    "libc-dev",
    "libc6",
    "libgcc-s1",
    "libstdc++6",
];

/// Unpacks the newest compiler into `dir/debian` and links to its parts.
pub fn lay_out(cache: &Cache, dir: &Path) -> Result<()> {
    let index = Apt::new(cache)?.index(&SUITES)?;
    let version = index.newest(PACKAGES[0])?.version;
    let wanted = PACKAGES.map(|package| format!("{package}={version}"));
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let pins = index.closure(&wanted, &PROVIDED, None)?;
    let debs = index.download(&pins)?;
    progress::step(&format!("unpacking Debian's rustc {version}"), || {
        apt::unpack(&debs, &dir.join("debian"))
    })?;
    let prefix = dir.join("debian/usr");
    let tuple = fs::read_dir(prefix.join("lib"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|lib| find_file(lib, "librustc_driver-").is_ok())
        .context("rustc-web brought no librustc_driver below usr/lib")?;
    let tuple = tuple.strip_prefix(dir)?;
    symlink("debian/usr", dir.join("compiler"))?;
    symlink("debian/usr", dir.join("sysroot"))?;
    symlink(tuple, dir.join("lib"))?;
    Ok(())
}
