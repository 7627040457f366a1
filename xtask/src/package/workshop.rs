//! The tools that make and check packages: rpmbuild, lintian and rpmlint, unpacked from Debian
//! packages below the cache, and run with that tree as their root.
//!
//! They are perl, python and C, and want their own versions of all three, so the C library comes
//! along; nothing is installed on this machine.

use std::{
    ffi::OsStr,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

use crate::{
    apt::{self, Apt, Suite},
    cache::Cache,
    progress,
};

/// Changes when what is unpacked changes.
const ENTRY: &str = "workshop/1";

const PACKAGES: [&str; 15] = [
    "lintian",
    "rpm",
    "rpmlint",
    // Essential: no package says that it depends on these.
    "base-files",
    "bash",
    "coreutils",
    "dash",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "libc-bin",
    "mawk",
    "sed",
    "tar",
];

/// Runs a program with the tree as its root, with this machine's devices and processes. A
/// namespace makes this possible without root.
const ENTER: &str =
    r#"mount --rbind /dev "$0/dev" && mount --rbind /proc "$0/proc" && exec chroot "$0" "$@""#;

/// The tree, and a directory in it that this run alone uses.
#[derive(Debug)]
pub struct Workshop {
    root: PathBuf,
    work: TempDir,
}

impl Workshop {
    /// Downloads and unpacks the tools, the first time.
    pub fn open(cache: &Cache) -> Result<Self> {
        let root = cache
            .once(ENTRY, |tree| fill(cache, tree))
            .context("get the tools for packages")?;
        let work = tempfile::tempdir_in(root.join("work"))?;
        Ok(Self { root, work })
    }

    /// The directory of this run, as this machine sees it.
    pub fn work(&self) -> &Path {
        self.work.path()
    }

    /// A path of [`Workshop::work`] as the tools see it.
    pub fn inside(&self, name: &str) -> PathBuf {
        let work = self.work.path().file_name().unwrap_or_default();
        Path::new("/work").join(work).join(name)
    }

    /// A command that runs one of the tools.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--map-root-user", "--mount", "sh", "-c", ENTER])
            .arg(&self.root)
            .arg(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", "/root")
            .env("LC_ALL", "C.UTF-8");
        command
    }
}

fn fill(cache: &Cache, tree: &Path) -> Result<()> {
    let index = Apt::new(cache)?.index(&[Suite::Bookworm, Suite::BookwormSecurity])?;
    let debs = index.download(&index.closure(&PACKAGES, &[], None)?)?;
    progress::step(&format!("unpacking {} packages", debs.len()), || {
        for dir in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            fs::create_dir_all(tree.join("usr").join(dir))?;
            symlink(format!("usr/{dir}"), tree.join(dir))?;
        }
        apt::unpack(debs, tree)?;
        for dir in ["dev", "proc", "root", "tmp", "work"] {
            fs::create_dir_all(tree.join(dir))?;
        }
        // A script of base-files would link it: lintian asks whose rules apply.
        symlink("debian", tree.join("etc/dpkg/origins/default"))?;
        // lintian asks who owns files.
        fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
        fs::write(tree.join("etc/group"), "root:x:0:\n")?;
        Ok(())
    })
}
