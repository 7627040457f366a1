//! From a kernel package, or a kernel tree's output, to what QEMU boots: an
//! uncompressed image, and a cpio layer with the modules.
//!
//! Of x86, QEMU enters an ELF image with a PVH note directly, which under emulation
//! saves the decompression inside the guest (seconds).

use std::{
    fs,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    os::unix::fs::{MetadataExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use super::{
    format::{arch_of, decompressor, has_pvh_note, is_elf, payload, release_of},
    kernel::{KernelName, resolve},
    modules,
    tools::Tools,
};
use crate::{
    apt::{self, Apt},
    arch::Arch,
    cache::Cache,
    progress,
};

/// A kernel that can be booted.
#[derive(Clone, Debug)]
pub struct Kernel {
    pub arch: Arch,
    /// What `uname -r` says.
    pub release: String,
    /// How a person would name it again.
    pub name: KernelName,
    /// Of x86, an ELF image with a PVH note, or a bzImage where the kernel lacks one; of arm64,
    /// an Image.
    pub image: PathBuf,
    /// A cpio archive with its modules below `usr/lib/modules`.
    pub modules: Option<PathBuf>,
}

impl Kernel {
    /// Downloads, unpacks and converts the kernel that `name` means, unless an earlier run has done so.
    pub fn get(cache: &Cache, apt: &Apt, tools: &Tools, name: &KernelName) -> Result<Self> {
        match name {
            KernelName::Path { image, modules } => {
                Self::from_tree(cache, apt.arch(), tools, name, image, modules.as_deref())
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
                symlink("usr/lib", tree.join("lib"))?;
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
                modules::write(tools, tree, &offered.release, &dir.join("modules.cpio"))
            })
        })?;
        Ok(Self {
            arch: apt.arch(),
            release: offered.release,
            name: name.clone(),
            image: dir.join("image"),
            modules: Some(dir.join("modules.cpio")),
        })
    }

    fn from_tree(
        cache: &Cache,
        arch: Arch,
        tools: &Tools,
        name: &KernelName,
        image: &Path,
        modules: Option<&Path>,
    ) -> Result<Self> {
        let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
        let release = release_of(&bytes).filter(|_| arch_of(&bytes) == Some(arch));
        let release = release.with_context(|| {
            format!(
                "{} is no kernel image that the lab boots on {arch}; {}",
                image.display(),
                match arch {
                    Arch::Amd64 => "give a bzImage or a vmlinux",
                    Arch::Arm64 => "give the file arch/arm64/boot/Image of a kernel tree",
                }
            )
        })?;
        let folder = modules
            .map(|given| modules::find(given, &release))
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
            symlink("usr/lib", tree.join("lib"))?;
            modules::copy(folder, &tree.join("usr/lib/modules").join(&release))?;
            modules::write(tools, tree, &release, &dir.join("modules.cpio"))
        })?;
        Ok(Self {
            arch,
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
    format!("kernels/4-{release}_{version}")
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

fn write_image(tools: &Tools, image: &Path, to: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| format!("read {}", image.display()))?;
    if is_elf(&bytes) {
        fs::write(to, bytes)?;
        return Ok(());
    }
    let elf = match payload(&bytes).and_then(|payload| Some((payload, decompressor(payload)?))) {
        Some((payload, (program, args, sized))) => {
            let end = payload.len() - if sized { 4 } else { 0 };
            tools
                .filter(program, args, &payload[..end])
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
