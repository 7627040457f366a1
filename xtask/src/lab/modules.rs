//! The layer with a kernel's modules: those that NFS and the scenarios need.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};

use super::{layer::Layer, tools::Tools};
use crate::apt;

/// Modules without which there is no NFS server or client to test, or no way
/// for a result to come out of the guest.
const NEEDED: [&str; 7] = [
    "sunrpc",
    "lockd",
    "nfsd",
    "nfs",
    "nfsv3",
    "virtio_pci",
    "virtio_console",
];

/// Modules that scenarios use where the kernel has them.
const USEFUL: [&str; 43] = [
    "virtio_blk",
    "virtio_net",
    "nfs_acl",
    "nfsv4",
    "auth_rpcgss",
    "rpcsec_gss_krb5",
    "veth",
    "dummy",
    "bridge",
    "macvlan",
    "ipvlan",
    "vrf",
    "8021q",
    "tun",
    "bonding",
    "sch_ingress",
    "sch_netem",
    "sch_prio",
    "sch_htb",
    "cls_bpf",
    "cls_u32",
    "cls_flower",
    "cls_matchall",
    "act_bpf",
    "act_gact",
    "act_mirred",
    "nf_tables",
    "nft_ct",
    "nft_nat",
    "nft_chain_nat",
    "ip_gre",
    "nft_reject_inet",
    "af_packet_diag",
    "tcp_diag",
    "udp_diag",
    "inet_diag",
    "unix_diag",
    "netlink_diag",
    "loop",
    "overlay",
    "ext4",
    "configfs",
    "kheaders",
];

/// Finds the directory that has `kernel/` for this release in or below `given`.
pub(super) fn find(given: &Path, release: &str) -> Result<PathBuf> {
    [
        given.to_path_buf(),
        given.join(release),
        given.join("lib/modules").join(release),
    ]
    .into_iter()
    .find(|dir| dir.join("kernel").is_dir())
    .ok_or_else(|| {
        anyhow!(
            "{} has no modules of {release}: give the directory that `make modules_install \
         INSTALL_MOD_PATH=…` filled",
            given.display()
        )
    })
}

/// Copies a module tree; links (to the kernel's sources) stay behind.
pub(super) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Writes the modules of [`NEEDED`] and [`USEFUL`], with what they depend on,
/// uncompressed and with a fresh index.
pub(super) fn write(tools: &Tools, tree: &Path, release: &str, to: &Path) -> Result<()> {
    let modules = tree.join("usr/lib/modules").join(release);
    depmod(tools, tree, release)?;
    let index = fs::read_to_string(modules.join("modules.dep"))?;
    let known = Dependencies::parse(&index);
    let builtin = fs::read_to_string(modules.join("modules.builtin")).unwrap_or_default();
    let builtin: BTreeSet<&str> = builtin.lines().map(module_name).collect();
    let mut wanted = BTreeSet::new();
    for name in NEEDED {
        if !known.add(name, &mut wanted) && !builtin.contains(name) {
            bail!("kernel {release} has no module {name}, which the lab requires");
        }
    }
    for name in USEFUL {
        known.add(name, &mut wanted);
    }
    let small = tempfile::tempdir_in(tree)?;
    let target = small.path().join("usr/lib/modules").join(release);
    fs::create_dir_all(&target)?;
    symlink("usr/lib", small.path().join("lib"))?;
    for file in [
        "modules.order",
        "modules.builtin",
        "modules.builtin.modinfo",
    ] {
        if modules.join(file).exists() {
            fs::copy(modules.join(file), target.join(file))?;
        }
    }
    for path in wanted {
        let (plain, program) = match path.rsplit_once('.') {
            Some((plain, "xz")) => (plain, Some("xz")),
            Some((plain, "zst")) => (plain, Some("zstd")),
            Some((plain, "gz")) => (plain, Some("gzip")),
            _ => (path, None),
        };
        let copy = target.join(plain);
        fs::create_dir_all(copy.parent().expect("a module lies in a folder"))?;
        let bytes = fs::read(modules.join(path)).with_context(|| format!("read {path}"))?;
        let bytes = match program {
            Some(program) => tools.filter(program, &["-dc"], &bytes)?,
            None => bytes,
        };
        fs::write(copy, bytes)?;
    }
    depmod(tools, small.path(), release)?;
    fs::remove_file(small.path().join("lib"))?;
    let mut layer = Layer::new(File::create(to)?);
    layer.tree(small.path(), "")?;
    layer.finish()?;
    Ok(())
}

fn depmod(tools: &Tools, tree: &Path, release: &str) -> Result<()> {
    apt::run(tools.command("depmod")?.arg("-b").arg(tree).arg(release))
        .with_context(|| format!("index the modules of {release}"))?;
    Ok(())
}

/// `modules.dep`: which module files each module needs.
#[derive(Debug, Default)]
struct Dependencies<'a>(BTreeMap<String, Vec<&'a str>>);

impl<'a> Dependencies<'a> {
    /// Lines of `path: path path …`, the module itself first.
    fn parse(text: &'a str) -> Self {
        Self(
            text.lines()
                .filter_map(|line| {
                    let (path, needs) = line.split_once(':')?;
                    let paths = std::iter::once(path).chain(needs.split_whitespace());
                    Some((module_name(path).replace('-', "_"), paths.collect()))
                })
                .collect(),
        )
    }

    /// Adds a module and its dependencies; false if there is no module of this name.
    fn add(&self, name: &str, wanted: &mut BTreeSet<&'a str>) -> bool {
        match self.0.get(name) {
            Some(paths) => {
                wanted.extend(paths);
                true
            }
            None => false,
        }
    }
}

/// `kernel/fs/nfsd/nfsd.ko.xz` is nfsd.
fn module_name(path: &str) -> &str {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split(".ko").next().unwrap_or(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_with_what_they_need() {
        let known = Dependencies::parse(
            "kernel/fs/nfsd/nfsd.ko.xz: kernel/fs/lockd/lockd.ko.xz kernel/net/sunrpc/sunrpc.ko.xz\n\
             kernel/drivers/net/nf-tables.ko:\n",
        );
        let mut wanted = BTreeSet::new();
        assert!(known.add("nfsd", &mut wanted));
        assert!(known.add("nf_tables", &mut wanted));
        assert!(!known.add("absent", &mut wanted));
        assert_eq!(wanted.len(), 4);
        assert_eq!(module_name("kernel/fs/nfsd/nfsd.ko.xz"), "nfsd");
    }
}
