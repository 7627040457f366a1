//! dpkg for the lab's guests, whose userland is unpacked without it.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    apt::{self, Apt, Suite},
    arch::Arch,
    cache::Cache,
};

/// Changes when what is unpacked changes.
const ENTRY: &str = "rootfs/dpkg-1";

/// Its program, its libraries, and what it calls.
const KEPT: [&str; 6] = [
    "usr/bin/dpkg",
    "usr/bin/dpkg-deb",
    "usr/bin/dpkg-split",
    "usr/bin/dpkg-trigger",
    "usr/sbin/ldconfig",
    "usr/sbin/start-stop-daemon",
];

/// Installed, as far as dpkg knows: what a package of ours depends on.
const STATUS: &str = "\
Package: libc6
Status: install ok installed
Architecture: @ARCH@
Maintainer: none
Version: 2.36-9
Description: of the lab's userland

Package: libgcc-s1
Status: install ok installed
Architecture: @ARCH@
Maintainer: none
Version: 12.2.0-14
Description: of the lab's userland
";

/// A tree with `usr` and `var/lib/dpkg`.
pub fn tree(cache: &Cache, arch: Arch) -> Result<PathBuf> {
    cache
        .once(&format!("{ENTRY}{}", arch.suffix()), |tree| {
            let index = Apt::of(cache, arch)?.index(&[Suite::Bookworm, Suite::BookwormSecurity])?;
            let mut pins = index.closure(&["dpkg", "libc-bin"], &[], None)?;
            // The userland has it.
            pins.retain(|pin| pin.package != "libc6");
            let unpacked = tree.with_file_name("unpacked");
            for folder in ["bin", "sbin", "lib", "lib64"] {
                fs::create_dir_all(unpacked.join("usr").join(folder))?;
                symlink(format!("usr/{folder}"), unpacked.join(folder))?;
            }
            apt::unpack(index.download(&pins)?, &unpacked)?;
            keep(&unpacked, tree, &format!("usr/{}", arch.libraries()))?;
            for path in KEPT {
                keep(&unpacked, tree, path)?;
            }
            let database = tree.join("var/lib/dpkg");
            for folder in ["info", "updates", "triggers", "parts"] {
                fs::create_dir_all(database.join(folder))?;
            }
            let status = STATUS.replace("@ARCH@", arch.debian());
            fs::write(database.join("status"), status)?;
            fs::write(database.join("available"), "")?;
            Ok(())
        })
        .context("get dpkg for the lab")
}

fn keep(from: &Path, to: &Path, path: &str) -> Result<()> {
    let target = to.join(path);
    fs::create_dir_all(target.parent().unwrap_or(to))?;
    fs::rename(from.join(path), &target).with_context(|| format!("move {path}"))
}
