//! What is installed, and where: the same files in each kind of package.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use super::third_party;
use crate::{apt, arch::Arch, cache::workspace_root};

/// Folders of `dist/`, and where their files are installed. Any other folder `NAME` goes to
/// `usr/share/nlmfo/NAME`.
const DIST: [(&str, Option<&str>); 4] = [
    ("etc", Some("etc")),
    ("ocf", Some("usr/lib/ocf")),
    // What the packages are made with.
    ("packaging", None),
    ("systemd", Some("usr/lib/systemd/system")),
];

const SHARE: &str = "usr/share/nlmfo";
const DOC: &str = "usr/share/doc/nlmfo";

/// Files of the repository that every package brings along.
const DOCUMENTS: [&str; 3] = ["README.md", "SECURITY.md", "CHANGELOG.md"];

/// Removed by name only when the package is purged, and kept if they were changed.
pub const CONFIGURATION: &str = "etc/";

/// A tree with all files below the root directory.
#[derive(Debug)]
pub struct Tree {
    pub root: PathBuf,
}

impl Tree {
    /// Fills `root` with the program, what [`manuals`] made, and `dist/`.
    pub fn make(root: PathBuf, arch: Arch, program: &Path, manuals: &Path) -> Result<Self> {
        let tree = Tree { root };
        tree.install(program, "usr/sbin/nlmfo", 0o755)?;
        // statd gives its callout program no arguments: nlmfo is that program by this name.
        let callout = tree.root.join("usr/sbin/nlmfo-ha-callout");
        symlink("nlmfo", &callout).with_context(|| format!("link {}", callout.display()))?;
        for page in files(&manuals.join("man"))? {
            let name = name(&page)?;
            tree.install(&page, &format!("usr/share/man/man8/{name}"), 0o644)?;
        }
        for (file, to) in [
            ("nlmfo.bash", "usr/share/bash-completion/completions/nlmfo"),
            ("_nlmfo", "usr/share/zsh/vendor-completions/_nlmfo"),
            (
                "nlmfo.fish",
                "usr/share/fish/vendor_completions.d/nlmfo.fish",
            ),
        ] {
            tree.install(&manuals.join("completions").join(file), to, 0o644)?;
        }
        for file in DOCUMENTS {
            let to = format!("{DOC}/{file}");
            tree.install(&workspace_root().join(file), &to, 0o644)?;
        }
        for page in files(&workspace_root().join("docs"))? {
            if page
                .extension()
                .is_some_and(|ending| ending == "md" || ending == "svg")
            {
                let to = format!("{DOC}/docs/{}", name(&page)?);
                tree.install(&page, &to, 0o644)?;
            }
        }
        let third_party = third_party::text(arch).context("collect the licences of the crates")?;
        tree.write(
            &format!("{DOC}/THIRD-PARTY.md"),
            third_party.as_bytes(),
            0o644,
        )?;
        tree.dist(&workspace_root().join("dist"))?;
        Ok(tree)
    }

    fn dist(&self, dist: &Path) -> Result<()> {
        for file in files(dist)? {
            let relative = file.strip_prefix(dist)?;
            let folder = relative.iter().next().unwrap_or_default().to_string_lossy();
            let place = match DIST.iter().find(|(name, _)| *name == folder) {
                Some((_, None)) => continue,
                Some((name, Some(place))) => Path::new(place).join(relative.strip_prefix(name)?),
                None => Path::new(SHARE).join(relative),
            };
            let executable = fs::metadata(&file)?.permissions().mode() & 0o100 != 0;
            let mode = if executable { 0o755 } else { 0o644 };
            self.install(&file, &place.to_string_lossy(), mode)?;
        }
        Ok(())
    }

    pub fn install(&self, from: &Path, to: &str, mode: u32) -> Result<()> {
        let bytes = fs::read(from).with_context(|| format!("read {}", from.display()))?;
        self.write(to, &bytes, mode)
    }

    pub fn write(&self, to: &str, bytes: &[u8], mode: u32) -> Result<()> {
        let to = self.root.join(to);
        let write = || {
            fs::create_dir_all(to.parent().unwrap_or(&self.root))?;
            fs::write(&to, bytes)?;
            fs::set_permissions(&to, fs::Permissions::from_mode(mode))
        };
        write().with_context(|| format!("write {}", to.display()))
    }

    /// Compresses files of a folder, as packages want man pages and changelogs.
    pub fn compress(&self, path: &str) -> Result<()> {
        for file in files(&self.root.join(path))? {
            apt::run(Command::new("gzip").args(["-9n"]).arg(file))?;
        }
        Ok(())
    }

    /// The paths of all files and links, from the root, in order.
    pub fn paths(&self) -> Result<Vec<String>> {
        let paths = files(&self.root)?;
        let relative = paths.iter().map(|path| path.strip_prefix(&self.root));
        relative
            .map(|path| Ok(path?.to_string_lossy().into_owned()))
            .collect()
    }

    /// All files get this time and the modes of their kind, whatever the umask: what is made of
    /// them is the same each time.
    pub fn settle(&self, epoch: u64) -> Result<()> {
        apt::run(
            Command::new("chmod")
                .args(["-R", "u=rwX,go=rX"])
                .arg(&self.root),
        )?;
        apt::run(
            Command::new("find")
                .arg(&self.root)
                .args(["-exec", "touch", "-h", "-d"])
                .arg(format!("@{epoch}"))
                .args(["{}", "+"]),
        )?;
        Ok(())
    }
}

/// The files and links below a folder, in the order of their names.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => folders.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    ensure!(!found.is_empty(), "{} has no files", folder.display());
    found.sort();
    Ok(found)
}

fn name(path: &Path) -> Result<&str> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.with_context(|| format!("{} has no name in UTF-8", path.display()))
}
