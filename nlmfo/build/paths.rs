//! For the build programs of nlmfo and of its packages.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Compiler flags that keep the paths of this machine out of what is built: it is the same wherever
/// it is built.
pub fn without_paths(workspace: &Path) -> String {
    let home = env::var_os("CARGO_HOME").filter(|home| !home.is_empty());
    let home = home.map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo")));
    let mut flags = Vec::new();
    for (path, name) in [(home, "/cargo"), (Some(workspace.to_owned()), "/nlmfo")] {
        let path = path.map(|path| fs::canonicalize(&path).unwrap_or(path));
        let path = path.map(|path| path.display().to_string());
        // Cargo separates flags at blanks.
        if let Some(path) = path.filter(|path| !path.contains(' ')) {
            flags.push(format!("--remap-path-prefix={path}={name}"));
        }
    }
    flags.join(" ")
}
