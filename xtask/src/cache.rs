//! The cache: what was downloaded or built, for later runs.
//!
//! `target/lab` of the workspace, or the directory named by `NLMFO_CACHE` (several
//! worktrees can share it). An entry appears under its final name only when it
//! is complete: it is built in a temporary directory beside it and renamed, under
//! a file lock, so an interrupted run leaves nothing that looks done and two
//! runs at once build it once.

use std::{
    env,
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use tempfile::TempDir;

/// Where downloads and built layers live.
#[derive(Clone, Debug)]
pub struct Cache {
    root: PathBuf,
}

/// Held until dropped; another xtask waits for it.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "closing the file releases the lock")] File);

impl Cache {
    /// The directory named by `NLMFO_CACHE`, else `target/lab` of the workspace.
    pub fn open() -> Result<Self> {
        let root = match env::var_os("NLMFO_CACHE") {
            Some(dir) if !dir.is_empty() => PathBuf::from(dir),
            _ => workspace_root().join("target/lab"),
        };
        Self::at(root)
    }

    /// A cache in the given directory, created if missing.
    pub fn at(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        fs::create_dir_all(&root)
            .with_context(|| format!("create the cache directory {}", root.display()))?;
        // apt, tar and QEMU run with other working directories.
        let root = root
            .canonicalize()
            .with_context(|| format!("resolve the cache directory {}", root.display()))?;
        Ok(Self { root })
    }

    /// The directory itself, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The path of an entry, whether it exists or not.
    pub fn path(&self, entry: impl AsRef<Path>) -> PathBuf {
        self.root.join(entry)
    }

    /// A directory of the cache, created if missing.
    pub fn dir(&self, entry: impl AsRef<Path>) -> Result<PathBuf> {
        let dir = self.path(entry);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        Ok(dir)
    }

    /// Takes the lock `name` (`locks/NAME`), waiting for another xtask if needed.
    pub fn lock(&self, name: &str) -> Result<Lock> {
        let path = self.dir("locks")?.join(name.replace('/', "-"));
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .with_context(|| format!("open the lock file {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                eprintln!("waiting for another xtask that holds {}", path.display());
                file.lock()
                    .with_context(|| format!("lock {}", path.display()))?;
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
        }
        Ok(Lock(file))
    }

    /// The entry (a file or directory), built by `build` if it does not exist.
    ///
    /// `build` gets a path that does not exist, and must create a file or a directory there; it is
    /// renamed to the entry's name. The path lies in a directory of its own, where `build` may leave
    /// temporary files.
    pub fn once(&self, entry: &str, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let path = self.path(entry);
        if path.exists() {
            return Ok(path);
        }
        let _lock = self.lock(entry)?;
        if path.exists() {
            return Ok(path);
        }
        let parent = path.parent().expect("an entry lies below the root");
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
        let name = path.file_name().expect("an entry has a name");
        let scratch = scratch(parent, &format!(".building-{}", name.display()))?;
        let built = scratch.path().join("entry");
        build(&built)?;
        fs::rename(&built, &path)
            .with_context(|| format!("move {} to {}", built.display(), path.display()))?;
        Ok(path)
    }
}

/// An empty temporary directory of this name. The caller holds the lock for this name, so existing
/// files are from an interrupted run.
pub(crate) fn scratch(parent: &Path, name: &str) -> Result<TempDir> {
    let stale = parent.join(name);
    let context = || format!("make the temporary directory {}", stale.display());
    if stale.try_exists().with_context(context)? {
        fs::remove_dir_all(&stale).with_context(context)?;
    }
    tempfile::Builder::new()
        .prefix(name)
        .rand_bytes(0)
        .tempdir_in(parent)
        .with_context(context)
}

/// The workspace's directory, as it was when xtask was built.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
        .to_path_buf()
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn an_entry_is_built_once() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path())?;
        let path = cache.once("a/b", |p| Ok(fs::write(p, "first")?))?;
        cache.once("a/b", |_| bail!("built twice"))?;
        assert_eq!(fs::read_to_string(path)?, "first");
        Ok(())
    }

    #[test]
    fn a_failed_build_leaves_nothing() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path())?;
        let failed = cache.once("a/b", |p| {
            fs::write(p, "half")?;
            bail!("interrupted")
        });
        assert!(failed.is_err());
        assert!(!cache.path("a/b").exists());
        assert_eq!(fs::read_dir(cache.path("a"))?.count(), 0);
        Ok(())
    }

    #[test]
    fn what_a_killed_run_left_is_cleared() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let cache = Cache::at(dir.path())?;
        fs::create_dir_all(cache.path("a/.building-b/entry"))?;
        let path = cache.once("a/b", |p| Ok(fs::write(p, "whole")?))?;
        assert_eq!(fs::read_to_string(path)?, "whole");
        assert_eq!(fs::read_dir(cache.path("a"))?.count(), 1);
        Ok(())
    }
}
