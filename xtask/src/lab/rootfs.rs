//! The guest's userland: Debian 12 with the kernel NFS server's and client's
//! tools, as layers that every run shares.
//!
//! bookworm's, whatever kernel is booted: programs built on a Debian 12 machine
//! run in it. Nothing is configured by package scripts, so what they would have
//! made (users, links, state directories) is made here.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{layer::Layer, tools::Tools};
use crate::{
    apt::{self, Apt, Suite},
    arch::Arch,
    cache::Cache,
    progress,
};

const SUITES: [Suite; 3] = [
    Suite::Bookworm,
    Suite::BookwormUpdates,
    Suite::BookwormSecurity,
];

const PACKAGES: [&str; 34] = [
    "base-files",
    "bash",
    "bsdutils",
    "busybox-static",
    "coreutils",
    "dash",
    "diffutils",
    "e2fsprogs",
    "ethtool",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "iproute2",
    "iputils-arping",
    "iputils-ping",
    "jq",
    "kmod",
    "libc-bin",
    "mawk",
    "mount",
    "netbase",
    "netcat-openbsd",
    "nfs-common",
    "nfs-kernel-server",
    "nftables",
    "procps",
    "psmisc",
    "rpcbind",
    "sed",
    "tar",
    "tcpdump",
    "util-linux",
    "util-linux-extra",
];

/// For measuring against: Debian's own BPF tools. Large (LLVM), so apart.
const BPF_PACKAGES: [&str; 2] = ["bpftool", "bpftrace"];

/// A manager of clusters or services, as Debian packages it. Each is a layer of its own: only its
/// scenarios unpack it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Manager {
    /// With corosync and the resource agents
    Pacemaker,
    Keepalived,
    Ctdb,
    /// With the units of the NFS packages
    Systemd,
}

impl Manager {
    const fn name(self) -> &'static str {
        match self {
            Manager::Pacemaker => "pacemaker",
            Manager::Keepalived => "keepalived",
            Manager::Ctdb => "ctdb",
            Manager::Systemd => "systemd",
        }
    }

    const fn packages(self) -> &'static [&'static str] {
        match self {
            // ocf-tester validates meta-data with xmllint.
            Manager::Pacemaker => &[
                "corosync",
                "libxml2-utils",
                "pacemaker",
                "pacemaker-cli-utils",
                "resource-agents",
            ],
            Manager::Keepalived => &["keepalived"],
            // Its event scripts use ethtool and iptables.
            Manager::Ctdb => &["ctdb", "ethtool", "iptables"],
            Manager::Systemd => &["nfs-common", "nfs-kernel-server", "rpcbind", SYSTEMD],
        }
    }
}

const SYSTEMD: &str = "systemd";

/// Dependencies that are needed only to install and configure packages.
const LEFT_OUT: [&str; 19] = [
    "adduser",
    "debconf",
    "dpkg",
    "init-system-helpers",
    "install-info",
    "libldap-2.5-0",
    "libpam-modules",
    "libpam-modules-bin",
    "libpam-runtime",
    "lsb-base",
    "passwd",
    "perl",
    "perl-base",
    "python3",
    "sensible-utils",
    SYSTEMD,
    "sysvinit-utils",
    "ucf",
    "usrmerge",
];

/// Paths that nothing in the lab uses; every boot would unpack them.
const PRUNED: [&str; 15] = [
    "boot",
    "usr/bin/localedef",
    "usr/sbin/arpd",
    "usr/sbin/devlink",
    "usr/sbin/ldconfig",
    "usr/share/bash-completion",
    "usr/share/bug",
    "usr/share/common-licenses",
    "usr/share/doc",
    "usr/share/i18n",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "usr/share/zoneinfo",
];

/// systemd, and the units of packages. The same, unless systemd is asked for.
const UNITS: &str = "usr/lib/systemd";

/// The same, in the directory of the libraries.
const PRUNED_LIBRARIES: [&str; 4] = ["gconv", "libdb-5.3.so", "libmvec.so.1", "security"];

/// Directories that package scripts or an init would make.
const FOLDERS: [&str; 14] = [
    "dev",
    "export",
    "mnt",
    "proc",
    "root",
    "run",
    "sys",
    "tmp",
    "var/lib/nfs/nfsdcld",
    "var/lib/nfs/rpc_pipefs",
    "var/lib/nfs/v4recovery",
    "var/lock",
    "var/log",
    "var/tmp",
];

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
_rpc:x:101:65534::/run/rpcbind:/usr/sbin/nologin
statd:x:102:65534::/var/lib/nfs:/usr/sbin/nologin
tcpdump:x:103:103::/nonexistent:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
";
const GROUP: &str = "root:x:0:\ntcpdump:x:103:\nnogroup:x:65534:\n";
/// Pacemaker's user and group.
const HACLUSTER: &str = "hacluster:x:104:104::/var/lib/pacemaker:/usr/sbin/nologin\n";
const HACLIENT: &str = "haclient:x:104:\n";
const HACLUSTER_OWNER: (u32, u32) = (104, 104);
const STATD: (u32, u32) = (102, 65534);
const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost\n";
const NSSWITCH: &str = "passwd: files\ngroup: files\nhosts: files\nnetworks: files\n\
                        protocols: files\nservices: files\nethers: files\nrpc: files\n";

/// Where a layer is kept.
fn entry(apt: &Apt, name: &str) -> String {
    format!("rootfs/{name}{}.cpio", apt.arch().suffix())
}

/// The userland that every run has.
pub fn userland(cache: &Cache, apt: &Apt, tools: &Tools) -> Result<PathBuf> {
    cache
        .once(&entry(apt, "userland-4"), |to| {
            build(apt, &PACKAGES, &[], to, |tree, layer| {
                busybox_links(tools, apt.arch(), tree)?;
                configure(tree)?;
                layer.tree(tree, "")?;
                layer.directory("tmp", 0o1777, (0, 0))?;
                layer.directory("root", 0o700, (0, 0))?;
                for dir in ["var/lib/nfs/sm", "var/lib/nfs/sm.bak"] {
                    // statd drops its privileges to the owner of this directory.
                    layer.directory(dir, 0o700, STATD)?;
                }
                Ok(())
            })
        })
        .context("build the guest's userland")
}

/// bpftool and bpftrace with what only they need, on top of the userland.
pub fn bpf_tools(cache: &Cache, apt: &Apt) -> Result<PathBuf> {
    cache
        .once(&entry(apt, "bpf-tools-2"), |to| {
            build(apt, &BPF_PACKAGES, &[], to, |tree, layer| {
                layer.tree(&tree.join("usr"), "usr")
            })
        })
        .context("build the layer with bpftool and bpftrace")
}

/// A cluster manager with what only it needs, on top of the userland.
pub fn manager(cache: &Cache, apt: &Apt, manager: Manager) -> Result<PathBuf> {
    let name = manager.name();
    cache
        .once(&entry(apt, &format!("{name}-1")), |to| {
            let packages = manager.packages();
            let below: Vec<&str> = (PACKAGES.into_iter())
                .filter(|package| !packages.contains(package))
                .collect();
            build(apt, packages, &below, to, |tree, layer| {
                for dir in ["etc", "usr", "var/lib"] {
                    if tree.join(dir).exists() {
                        layer.tree(&tree.join(dir), dir)?;
                    }
                }
                if manager == Manager::Ctdb {
                    layer.directory("var/log/ctdb", 0o755, (0, 0))?;
                    for program in ["iptables", "ip6tables"] {
                        let path = format!("usr/sbin/{program}");
                        layer.link(&path, Path::new("xtables-nft-multi"))?;
                    }
                }
                if manager == Manager::Pacemaker {
                    // As its package's scripts would make them.
                    layer.file(
                        "etc/passwd",
                        0o644,
                        format!("{PASSWD}{HACLUSTER}").as_bytes(),
                    )?;
                    layer.file("etc/group", 0o644, format!("{GROUP}{HACLIENT}").as_bytes())?;
                    for dir in ["", "/blackbox", "/cib", "/cores", "/pengine"] {
                        let dir = format!("var/lib/pacemaker{dir}");
                        layer.directory(&dir, 0o750, HACLUSTER_OWNER)?;
                    }
                    layer.directory("var/log/pacemaker", 0o770, HACLUSTER_OWNER)?;
                    layer.directory("var/log/corosync", 0o755, (0, 0))?;
                    // ocf-tester's `su`, which must work without PAM.
                    layer.link("usr/bin/su", Path::new("busybox"))?;
                }
                Ok(())
            })
        })
        .with_context(|| format!("build the layer with {name}"))
}

/// Builds a layer of packages with their dependencies, but without the packages of `below` and
/// their dependencies, which the layer beneath has. `fill` puts the unpacked tree into the layer.
fn build(
    apt: &Apt,
    packages: &[&str],
    below: &[&str],
    to: &Path,
    fill: impl FnOnce(&Path, &mut Layer<File>) -> Result<()>,
) -> Result<()> {
    let index = apt.index(&SUITES)?;
    let left_out: Vec<&str> = (LEFT_OUT.into_iter())
        .filter(|package| !packages.contains(package))
        .collect();
    let present = index.closure(below, &LEFT_OUT, None)?;
    let mut pins = index.closure(packages, &left_out, None)?;
    pins.retain(|pin| !present.contains(pin));
    let debs = index.download(&pins)?;
    let what = format!("building a layer of {} packages", debs.len());
    progress::step(&what, || {
        let tree = &to.with_file_name("tree");
        for dir in ["bin", "sbin", "lib", "lib32", "lib64", "libx32"] {
            fs::create_dir_all(tree.join("usr").join(dir))?;
            symlink(format!("usr/{dir}"), tree.join(dir))?;
        }
        apt::unpack(debs, tree)?;
        let units = (!packages.contains(&SYSTEMD)).then_some(UNITS);
        for path in PRUNED.into_iter().chain(units) {
            remove(&tree.join(path))?;
        }
        let libraries = tree.join("usr").join(apt.arch().libraries());
        for name in PRUNED_LIBRARIES {
            remove(&libraries.join(name))?;
        }
        let mut layer = Layer::new(File::create(to)?);
        fill(tree, &mut layer)?;
        layer.finish()?;
        Ok(())
    })
}

/// Removes a file or a directory with all that is in it, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("remove {}", path.display()))
}

/// Links busybox under the name of every program that the packages lack.
fn busybox_links(tools: &Tools, arch: Arch, tree: &Path) -> Result<()> {
    let mut busybox = match arch {
        Arch::HERE => Command::new(tree.join("bin/busybox")),
        // Debian builds the same one for all architectures.
        _ => tools.command("busybox")?,
    };
    let list = apt::run(busybox.arg("--list"))?;
    for applet in list.lines() {
        let present = ["usr/bin", "usr/sbin"]
            .iter()
            .any(|dir| tree.join(dir).join(applet).symlink_metadata().is_ok());
        if !present {
            symlink("busybox", tree.join("usr/bin").join(applet))?;
        }
    }
    Ok(())
}

fn configure(tree: &Path) -> Result<()> {
    for dir in FOLDERS {
        fs::create_dir_all(tree.join(dir)).with_context(|| format!("create {dir}"))?;
    }
    for (path, contents) in [
        ("etc/passwd", PASSWD),
        ("etc/group", GROUP),
        ("etc/hosts", HOSTS),
        ("etc/hostname", "lab\n"),
        ("etc/nsswitch.conf", NSSWITCH),
        ("etc/exports", ""),
        ("var/lib/nfs/etab", ""),
        ("var/lib/nfs/rmtab", ""),
    ] {
        fs::write(tree.join(path), contents).with_context(|| format!("write {path}"))?;
    }
    for (path, target) in [
        ("etc/mtab", "../proc/self/mounts"),
        ("usr/bin/awk", "mawk"),
        // busybox's shell would run its own ip and mount.
        ("usr/bin/sh", "dash"),
        ("usr/bin/nc", "nc.openbsd"),
        ("var/run", "../run"),
    ] {
        let path = tree.join(path);
        // A busybox link, or an empty directory that a package brought.
        remove(&path)?;
        symlink(target, &path).with_context(|| format!("link {}", path.display()))?;
    }
    Ok(())
}
