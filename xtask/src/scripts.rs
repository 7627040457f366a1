//! The shell scripts that are installed: shellcheck reads all of them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{apt::Apt, cache::Cache, lab::tools::Tools};

/// Fails if shellcheck has a remark about a script below `dist`.
pub fn check(cache: &Cache) -> Result<()> {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut scripts = Vec::new();
    collect(&top.join("dist"), &mut scripts)?;
    ensure!(!scripts.is_empty(), "there is no script below dist");
    let shellcheck = Tools::shellcheck(cache, &Apt::new(cache)?)?;
    let status = shellcheck
        .command("shellcheck")?
        .arg("--external-sources")
        .args(&scripts)
        .current_dir(&top)
        .status()
        .context("start shellcheck")?;
    ensure!(status.success(), "shellcheck: {status}");
    eprintln!("{} scripts", scripts.len());
    Ok(())
}

/// Adds every script below the directory.
fn collect(dir: &Path, scripts: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, scripts)?;
        } else if is_script(&fs::read(&path)?) {
            scripts.push(path);
        }
    }
    Ok(())
}

/// Whether it is for a shell: by its first line, or by shellcheck's own word in it.
fn is_script(contents: &[u8]) -> bool {
    let first = contents.split(|byte| *byte == b'\n').next();
    let first = String::from_utf8_lossy(first.unwrap_or_default()).into_owned();
    (first.starts_with("#!") && first.ends_with("sh")) || first.starts_with("# shellcheck shell=")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scripts_are_known_by_their_first_line() {
        for script in [
            "#!/bin/sh\n",
            "#!/bin/bash\nexit",
            "# shellcheck shell=dash\n",
        ] {
            assert!(is_script(script.as_bytes()), "{script}");
        }
        for other in ["[Unit]\n", "#!/usr/bin/python3\n", "", "\x7fELF"] {
            assert!(!is_script(other.as_bytes()), "{other}");
        }
    }
}
