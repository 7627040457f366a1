//! Programs for the host that need not be installed: QEMU, depmod and the decompressors, unpacked
//! from Debian packages below the cache.
//!
//! bookworm's own QEMU conflicts with packages of newer suites that a machine
//! may have, so nothing is installed; the backport's QEMU 10 is used.

use std::{
    io::Write as _,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    apt::{self, Apt, Suite},
    arch::Arch,
    cache::Cache,
    progress,
};

/// Changes when what is unpacked changes.
const ENTRY: &str = "tools/1";

/// What programs bring along but no lab run needs, the C library first: the
/// machine's own must match its own dynamic loader.
const LEFT_OUT: [&str; 14] = [
    "libc6",
    "adduser",
    "passwd",
    "systemd",
    "dmsetup",
    "libpam0g",
    "libpam-modules",
    "debconf",
    "perl-base",
    "dpkg",
    "install-info",
    "sensible-utils",
    "libgtk-3-0",
    "qemu-system-gui",
];

/// A tree of unpacked programs, for this machine.
#[derive(Clone, Debug)]
pub struct Tools {
    root: PathBuf,
    /// Of QEMU's machines.
    guest: Arch,
}

impl Tools {
    /// Downloads and unpacks them, the first time, with the emulator of this architecture.
    pub fn get(cache: &Cache, guest: Arch) -> Result<Self> {
        let apt = Apt::new(cache)?;
        let root = cache
            .once(&format!("{ENTRY}{}", guest.suffix()), |tree| {
                let index = apt.index(&[
                    Suite::Bookworm,
                    Suite::BookwormSecurity,
                    Suite::BookwormBackports,
                ])?;
                let qemu = index.closure(
                    &[
                        guest.emulator_package(),
                        "qemu-system-data",
                        "seabios",
                        "ipxe-qemu",
                    ],
                    &LEFT_OUT,
                    Some(Suite::BookwormBackports),
                )?;
                let mut debs = index.download(&qemu)?;
                let mut rest = vec!["kmod", "xz-utils", "zstd", "lz4", "gzip"];
                // The guest's own does not run here.
                rest.extend((guest != Arch::HERE).then_some("busybox-static"));
                let rest = index.closure(&rest, &LEFT_OUT, None)?;
                debs.extend(index.download(&rest)?);
                progress::step("unpacking QEMU and its helpers", || apt::unpack(debs, tree))
            })
            .context("get QEMU and the tools around it")?;
        Ok(Self { root, guest })
    }

    /// shellcheck alone, of the lab's Debian release.
    pub fn shellcheck(cache: &Cache, apt: &Apt) -> Result<Self> {
        let root = cache
            .once("tools/shellcheck-1", |tree| {
                let index = apt.index(&[Suite::Bookworm])?;
                let pins = index.closure(&["shellcheck"], &LEFT_OUT, None)?;
                apt::unpack(index.download(&pins)?, tree)
            })
            .context("get shellcheck")?;
        let guest = Arch::HERE;
        Ok(Self { root, guest })
    }

    /// QEMU with a machine of the architecture.
    pub fn qemu(&self) -> Result<Command> {
        let mut command = self.command(&format!("qemu-system-{}", self.guest.machine()))?;
        for dir in self.firmware() {
            command.arg("-L").arg(dir);
        }
        Ok(command)
    }

    /// A command that runs one of the programs, with its own libraries.
    pub fn command(&self, program: &str) -> Result<Command> {
        let path = ["usr/bin", "usr/sbin", "bin", "sbin"]
            .iter()
            .map(|dir| self.root.join(dir).join(program))
            .find(|path| path.symlink_metadata().is_ok())
            .with_context(|| format!("{program} is not in {}", self.root.display()))?;
        // kmod is one program under many names, by links from the root.
        let path = match path.read_link() {
            Ok(target) if target.is_absolute() => self.root.join(target.strip_prefix("/")?),
            _ => path,
        };
        let mut command = Command::new(path);
        command.arg0(program);
        let libraries = Arch::HERE.libraries();
        let libraries = ["usr", ""].map(|dir| {
            let dir = self.root.join(dir).join(&libraries);
            dir.display().to_string()
        });
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        Ok(command)
    }

    /// Feeds bytes through a program.
    pub fn filter(&self, program: &str, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
        let mut child = self
            .command(program)?
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {program}"))?;
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let output = thread::scope(|scope| {
            // If the program stops reading, its own status tells why.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output()
        })?;
        ensure!(
            output.status.success(),
            "{program} failed ({}): {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(output.stdout)
    }

    /// Where QEMU finds firmware and option ROMs.
    fn firmware(&self) -> [PathBuf; 3] {
        ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"]
            .map(|dir| self.root.join(Path::new(dir)))
    }
}
