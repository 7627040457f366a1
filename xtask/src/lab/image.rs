//! From a kernel package, or a kernel tree's output, to what QEMU boots: an
//! uncompressed ELF image, and a cpio layer with the modules.
//!
//! QEMU enters an ELF image with a PVH note directly, which under emulation
//! saves the decompression inside the guest (seconds).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Write as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use super::{
    kernel::{KernelName, resolve},
    layer::Layer,
    tools::Tools,
};
use crate::{
    apt::{self, Apt},
    cache::Cache,
    progress,
};

/// Modules without which there is no NFS server or client to test.
const NEEDED: [&str; 5] = ["sunrpc", "lockd", "nfsd", "nfs", "nfsv3"];

/// Modules that scenarios use where the kernel has them.
const USEFUL: [&str; 42] = [
    "virtio_pci",
    "virtio_console",
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
    "xfs",
    "configfs",
    "kheaders",
];

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What `uname -r` says.
    pub release: String,
    /// How a person would name it again.
    pub name: KernelName,
    /// An ELF image with a PVH note, or a bzImage where the kernel lacks one.
    pub image: PathBuf,
    /// A cpio archive with its modules below `usr/lib/modules`.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// Downloads, unpacks and converts the kernel that `name` means, where an
    /// earlier run has not.
    pub fn get(cache: &Cache, apt: &Apt, tools: &Tools, name: &KernelName) -> Result<Self> {
        match name {
            KernelName::Path { image, modules } => {
                Self::from_tree(cache, tools, name, image, modules.as_deref())
            }
            _ => Self::from_archive(cache, apt, tools, name),
        }
    }

    fn from_archive(cache: &Cache, apt: &Apt, tools: &Tools, name: &KernelName) -> Result<Self> {
        let offered = resolve(apt, name)?;
        let entry = entry(&offered.release, &offered.package_version);
        let dir = cache.once(&entry, |dir| {
            let index = apt.index(&[offered.suite])?;
            let debs = index.download(&offered.packages)?;
            progress::step(&format!("unpacking kernel {}", offered.release), || {
                // Packages before 7.0 have /lib/modules, later ones /usr/lib/modules.
                let tree = &dir.with_file_name("tree");
                fs::create_dir_all(tree.join("usr/lib"))?;
                std::os::unix::fs::symlink("usr/lib", tree.join("lib"))?;
                apt::unpack(debs, tree)?;
                let modules = tree.join("usr/lib/modules").join(&offered.release);
                let image = [
                    modules.join("vmlinuz"),
                    tree.join(format!("boot/vmlinuz-{}", offered.release)),
                ]
                .into_iter()
                .find(|path| path.exists())
                .with_context(|| format!("{} holds no vmlinuz", offered.release))?;
                fs::create_dir(dir)?;
                write_image(tools, &image, &dir.join("image"))?;
                write_modules(tools, tree, &offered.release, &dir.join("modules.cpio"))
            })
        })?;
        Ok(Self {
            release: offered.release,
            name: name.clone(),
            image: dir.join("image"),
            modules: Some(dir.join("modules.cpio")),
        })
    }

    fn from_tree(
        cache: &Cache,
        tools: &Tools,
        name: &KernelName,
        image: &Path,
        modules: Option<&Path>,
    ) -> Result<Self> {
        let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
        let release = release_of(&bytes)
            .with_context(|| format!("{} is no x86 kernel image", image.display()))?;
        let folder = modules
            .map(|given| find_modules(given, &release))
            .transpose()?;
        let key = fingerprint(image, folder.as_deref())?;
        let dir = cache.once(&entry(&release, &key), |dir| {
            fs::create_dir(dir)?;
            write_image(tools, image, &dir.join("image"))?;
            let Some(folder) = &folder else {
                return Ok(());
            };
            let tree = &dir.with_file_name("tree");
            fs::create_dir_all(tree.join("usr/lib/modules"))?;
            std::os::unix::fs::symlink("usr/lib", tree.join("lib"))?;
            copy_modules(folder, &tree.join("usr/lib/modules").join(&release))?;
            write_modules(tools, tree, &release, &dir.join("modules.cpio"))
        })?;
        Ok(Self {
            release,
            name: name.clone(),
            image: dir.join("image"),
            modules: folder.map(|_| dir.join("modules.cpio")),
        })
    }
}

/// Where a kernel of the archive is kept; it exists if it was downloaded.
pub fn entry(release: &str, version: &str) -> String {
    // The leading number changes when the lists of modules above change.
    format!("kernels/1-{release}_{version}")
}

/// Finds the folder that has `kernel/` for this release in or below `given`.
fn find_modules(given: &Path, release: &str) -> Result<PathBuf> {
    [
        given.to_path_buf(),
        given.join(release),
        given.join("lib/modules").join(release),
    ]
    .into_iter()
    .find(|dir| dir.join("kernel").is_dir())
    .ok_or_else(|| {
        anyhow!(
            "{} has no modules of {release}: give the folder that `make modules_install \
             INSTALL_MOD_PATH=…` filled",
            given.display()
        )
    })
}

/// Changes when the image or any module changes.
fn fingerprint(image: &Path, modules: Option<&Path>) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    let mut pending = vec![image.canonicalize()?];
    pending.extend(modules.map(Path::to_path_buf));
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path)?;
        if meta.is_dir() {
            for entry in fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
            pending.sort();
        } else {
            (&path, meta.len(), meta.mtime(), meta.mtime_nsec()).hash(&mut hasher);
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Copies a module tree; links (to the kernel's sources) stay behind.
fn copy_modules(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).with_context(|| format!("read {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        let kind = entry.file_type()?;
        if kind.is_dir() {
            copy_modules(&entry.path(), &target)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// A bzImage's own version string (Documentation/arch/x86/boot.rst,
/// `kernel_version`), or the banner inside an ELF image.
fn release_of(image: &[u8]) -> Option<String> {
    let text = if is_elf(image) {
        const BANNER: &[u8] = b"Linux version ";
        let at = find(image, BANNER)?;
        &image[at + BANNER.len()..]
    } else {
        setup_header(image)?;
        let offset = usize::from(u16::from_le_bytes(
            image.get(0x20e..0x210)?.try_into().ok()?,
        ));
        image.get(0x200 + offset..)?
    };
    let end = text
        .iter()
        .position(|b| b.is_ascii_whitespace() || *b == 0)?;
    let release = std::str::from_utf8(&text[..end]).ok()?;
    (!release.is_empty() && !release.contains('/')).then(|| release.to_owned())
}

fn is_elf(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

fn setup_header(image: &[u8]) -> Option<()> {
    (image.get(0x202..0x206)? == b"HdrS").then_some(())
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// The compressed kernel inside a bzImage, as boot.rst's `payload_offset` and
/// `payload_length` (protocol 2.08) tell.
fn payload(image: &[u8]) -> Option<&[u8]> {
    setup_header(image)?;
    let word = |at: usize| -> Option<usize> {
        usize::try_from(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?)).ok()
    };
    let setup_sectors = match image[0x1f1] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    image.get(start..start + word(0x24c)?)
}

/// The program that decompresses a payload, its arguments, and whether the
/// build put the size behind the data (scripts/Makefile.lib, `size_append`).
fn decompressor(payload: &[u8]) -> Option<(&'static str, &'static [&'static str], bool)> {
    Some(match payload {
        [0x1f, 0x8b, ..] => ("gzip", &["-dc"], false),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => ("zstd", &["-dc"], true),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => ("xz", &["-dc"], true),
        [0x02, 0x21, 0x4c, 0x18, ..] => ("lz4", &["-dc"], true),
        _ => return None,
    })
}

/// Whether QEMU can enter this ELF image directly: it looks for the ELF note
/// XEN_ELFNOTE_PHYS32_ENTRY (type 18, owner "Xen").
fn has_pvh_note(elf: &[u8]) -> bool {
    [4u32, 8].iter().any(|size| {
        let mut note = Vec::new();
        for word in [4, *size, 18] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        find(elf, &note).is_some()
    })
}

fn write_image(tools: &Tools, image: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
    if is_elf(&bytes) {
        fs::write(to, bytes)?;
        return Ok(());
    }
    let elf = match payload(&bytes).and_then(|payload| Some((payload, decompressor(payload)?))) {
        Some((payload, (program, args, sized))) => {
            let end = payload.len() - if sized { 4 } else { 0 };
            filter(tools, program, args, &payload[..end])
                .with_context(|| format!("decompress {}", image.display()))?
        }
        None => Vec::new(),
    };
    // Without a direct entry the guest unpacks itself: slower, but it boots.
    let chosen = if is_elf(&elf) && has_pvh_note(&elf) {
        elf
    } else {
        bytes
    };
    fs::write(to, chosen).with_context(|| format!("write {}", to.display()))
}

/// Feeds bytes through a program.
fn filter(tools: &Tools, program: &str, args: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let mut child = tools
        .command(program)?
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let output = std::thread::scope(|scope| {
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

/// Writes the modules of [`NEEDED`] and [`USEFUL`], with what they depend on,
/// uncompressed and with a fresh index.
fn write_modules(tools: &Tools, tree: &Path, release: &str, to: &Path) -> Result<()> {
    let modules = tree.join("usr/lib/modules").join(release);
    depmod(tools, tree, release)?;
    let index = fs::read_to_string(modules.join("modules.dep"))?;
    let known = Dependencies::parse(&index);
    let builtin = fs::read_to_string(modules.join("modules.builtin")).unwrap_or_default();
    let builtin: BTreeSet<&str> = builtin.lines().map(module_name).collect();
    let mut wanted = BTreeSet::new();
    for name in NEEDED {
        if !known.add(name, &mut wanted) && !builtin.contains(name) {
            bail!("kernel {release} has no module {name}: NFS cannot be tested on it");
        }
    }
    for name in USEFUL {
        known.add(name, &mut wanted);
    }
    let small = tempfile::tempdir_in(tree)?;
    let target = small.path().join("usr/lib/modules").join(release);
    fs::create_dir_all(&target)?;
    std::os::unix::fs::symlink("usr/lib", small.path().join("lib"))?;
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
            Some(program) => filter(tools, program, &["-dc"], &bytes)?,
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

    /// Adds a module and its dependencies; false if there is none of the name.
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

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024 * 2];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        image[0x300..0x300 + 21].copy_from_slice(b"6.12.107+deb12 (a@b) ");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        let size = u32::try_from(payload.len()).unwrap();
        image[0x24c..0x250].copy_from_slice(&size.to_le_bytes());
        image.truncate(1024 + 16);
        image.extend(payload);
        image
    }

    #[test]
    fn a_bzimage_tells_its_release_and_payload() {
        let image = bzimage(b"\x28\xb5\x2f\xfdabc");
        assert_eq!(release_of(&image).as_deref(), Some("6.12.107+deb12"));
        let payload = payload(&image).unwrap();
        assert_eq!(payload, b"\x28\xb5\x2f\xfdabc");
        assert_eq!(decompressor(payload).unwrap().0, "zstd");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        assert_eq!(release_of(b"#!/bin/sh\n"), None);
        assert_eq!(payload(&[0; 4096]), None);
        let mut cut = bzimage(b"\x1f\x8b....");
        cut.pop();
        assert_eq!(payload(&cut), None);
    }

    #[test]
    fn an_elf_image_tells_its_release() {
        let elf = b"\x7fELF....Linux version 7.3.4-dirty (me@here)\0";
        assert_eq!(release_of(elf).as_deref(), Some("7.3.4-dirty"));
        assert!(!has_pvh_note(elf));
        let noted = b"\x7fELF\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0........";
        assert!(has_pvh_note(noted));
    }

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
