//! A layer of the guest's root filesystem: a cpio archive (newc) that the
//! kernel unpacks at boot. Layers are concatenated; a later one wins.

use std::{
    fs,
    io::{self, BufWriter, Write},
    os::unix::{ffi::OsStrExt as _, fs::PermissionsExt as _},
    path::Path,
};

use anyhow::{Context as _, Result};
use cpio::newc;

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Writes entries one by one. All belong to root unless told otherwise.
#[derive(Debug)]
pub struct Layer<W: Write> {
    out: BufWriter<W>,
}

impl<W: Write> Layer<W> {
    pub fn new(out: W) -> Self {
        Self {
            out: BufWriter::with_capacity(1 << 20, out),
        }
    }

    /// A directory; `path` is relative to the guest's root.
    pub fn directory(&mut self, path: &str, mode: u32, owner: (u32, u32)) -> Result<()> {
        self.entry(path, DIRECTORY | mode, owner, &[])
    }

    pub fn file(&mut self, path: &str, mode: u32, contents: &[u8]) -> Result<()> {
        self.entry(path, FILE | mode, (0, 0), contents)
    }

    pub fn link(&mut self, path: &str, target: &Path) -> Result<()> {
        self.entry(path, LINK | 0o777, (0, 0), target.as_os_str().as_bytes())
    }

    /// A directory of the host with all that is in it, at `path` of the guest
    /// (empty for the root). Permissions are kept; all becomes root's.
    pub fn tree(&mut self, host: &Path, path: &str) -> Result<()> {
        let context = || format!("put {} into a layer", host.display());
        let mut names = fs::read_dir(host)
            .and_then(|entries| {
                entries
                    .map(|entry| entry.map(|entry| entry.file_name()))
                    .collect::<io::Result<Vec<_>>>()
            })
            .with_context(context)?;
        names.sort();
        for name in names {
            let from = host.join(&name);
            let name = name
                .to_str()
                .with_context(|| format!("{} has a name that is not UTF-8", from.display()))?;
            let to = match path {
                "" => name.to_owned(),
                _ => format!("{path}/{name}"),
            };
            let meta = fs::symlink_metadata(&from).with_context(context)?;
            let mode = meta.permissions().mode() & 0o7777;
            if meta.is_dir() {
                self.directory(&to, mode, (0, 0))?;
                self.tree(&from, &to)?;
            } else if meta.is_symlink() {
                self.link(&to, &fs::read_link(&from)?)?;
            } else if meta.is_file() {
                let contents =
                    fs::read(&from).with_context(|| format!("read {}", from.display()))?;
                self.file(&to, mode, &contents)?;
            }
        }
        Ok(())
    }

    /// Ends the archive, so that another may follow it.
    pub fn finish(self) -> Result<W> {
        let out = newc::trailer(self.out).context("end a layer")?;
        out.into_inner()
            .map_err(io::IntoInnerError::into_error)
            .context("write the end of a layer")
    }

    fn entry(&mut self, path: &str, mode: u32, owner: (u32, u32), contents: &[u8]) -> Result<()> {
        let context = || format!("write {path} into a layer");
        let size = u32::try_from(contents.len())
            .with_context(|| format!("{path} is larger than a cpio archive can hold"))?;
        let mut writer = newc::Builder::new(path)
            .mode(mode)
            .nlink(1)
            .uid(owner.0)
            .gid(owner.1)
            .write(&mut self.out, size);
        writer.write_all(contents).with_context(context)?;
        writer.finish().with_context(context)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_is_written_in_order_with_its_permissions() -> Result<()> {
        let dir = tempfile::tempdir()?;
        fs::create_dir(dir.path().join("bin"))?;
        fs::write(dir.path().join("bin/true"), "#!")?;
        fs::set_permissions(
            dir.path().join("bin/true"),
            fs::Permissions::from_mode(0o755),
        )?;
        std::os::unix::fs::symlink("bin", dir.path().join("sbin"))?;
        let mut layer = Layer::new(Vec::new());
        layer.tree(dir.path(), "usr")?;
        let bytes = layer.finish()?;

        let mut seen = Vec::new();
        let mut rest = bytes.as_slice();
        loop {
            let reader = newc::Reader::new(rest)?;
            if reader.entry().is_trailer() {
                break;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let mut contents = Vec::new();
            rest = reader.to_writer(&mut contents)?;
            seen.push((name, mode, String::from_utf8(contents)?));
        }
        let expected = [
            ("usr/bin", 0o040_755, ""),
            ("usr/bin/true", 0o100_755, "#!"),
            ("usr/sbin", 0o120_777, "bin"),
        ]
        .map(|(name, mode, contents)| (name.to_owned(), mode, contents.to_owned()));
        assert_eq!(seen, expected);
        assert_eq!(bytes.len() % 4, 0, "the next layer starts aligned");
        Ok(())
    }
}
