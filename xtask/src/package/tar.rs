//! The tarball: the installed files below one directory, for any distribution.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Result;

use super::{About, layout::Tree};
use crate::{apt, cache::workspace_root};

pub fn make(tree: &Tree, about: &About, to: &Path) -> Result<PathBuf> {
    let name = format!("nlmfo-{}-{}-linux", about.version, about.arch.machine());
    for licence in ["LICENSE-MIT", "LICENSE-APACHE", "nlmfo-ebpf/LICENSE-GPL2"] {
        let from = workspace_root().join(licence);
        let file = from.file_name().unwrap_or_default().to_string_lossy();
        tree.install(&from, &format!("usr/share/doc/nlmfo/{file}"), 0o644)?;
    }
    tree.settle(about.epoch)?;
    let path = to.join(format!("{name}.tar.gz"));
    apt::run(
        Command::new("tar")
            .args([
                "--create",
                "--use-compress-program",
                "gzip -9n",
                "--sort=name",
            ])
            .args(["--owner=0", "--group=0", "--numeric-owner", "--format=gnu"])
            .arg(format!("--mtime=@{}", about.epoch))
            .arg(format!("--transform=flags=r;s,^\\.,{name},"))
            .arg("--file")
            .arg(&path)
            .arg("--directory")
            .arg(&tree.root)
            .arg("."),
    )?;
    Ok(path)
}
