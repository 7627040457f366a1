//! The content of `/proc/kallsyms`, kept in a file as long as the same modules are loaded.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde::{Deserialize, Serialize};
use tracing::debug;

use super::{Symbols, SymbolsError};

/// Replaces a file; a crash leaves the old one or the new one.
type Write = fn(&Path, &[u8]) -> io::Result<()>;

struct Keeper {
    /// Kept open, since another mount namespace may have another directory at this path.
    folder: File,
    name: OsString,
    write: Write,
    /// The names that other commands need.
    names: fn() -> Vec<&'static str>,
}

static KEEPER: OnceLock<Keeper> = OnceLock::new();

/// Keeps symbols in a file that only root can write, whatever the mount namespace. Without this call,
/// they are read each time. The first read also finds `names`.
pub fn keep_in(path: &Path, write: Write, names: fn() -> Vec<&'static str>) {
    if let (Some(folder), Some(name)) = (path.parent(), path.file_name())
        && let Ok(folder) = File::open(folder)
    {
        let name = name.to_owned();
        let keeper = Keeper {
            folder,
            name,
            write,
            names,
        };
        // The first call counts.
        let _ = KEEPER.set(keeper);
    }
}

impl Keeper {
    fn path(&self) -> PathBuf {
        let folder = self.folder.as_raw_fd().to_string();
        Path::new("/proc/self/fd").join(folder).join(&self.name)
    }
}

/// The kernel and modules that have the symbols.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Incarnation {
    boot: String,
    /// The inode number of each loaded module's folder, which is not used again.
    modules: BTreeMap<String, u64>,
}

impl Incarnation {
    fn now() -> io::Result<Self> {
        let listed = std::fs::read_to_string("/proc/modules")?;
        let names = listed.lines().filter_map(|line| line.split(' ').next());
        let modules = names.map(|name| {
            let folder = Path::new("/sys/module").join(name).metadata()?;
            Ok((name.to_owned(), folder.ino()))
        });
        Ok(Incarnation {
            boot: crate::kernel::boot()?,
            modules: modules.collect::<io::Result<_>>()?,
        })
    }
}

#[derive(Serialize, Deserialize)]
struct Kept {
    incarnation: Incarnation,
    symbols: Symbols,
}

/// The symbols of these names and others, from the file or else from `read`.
pub(super) fn load(
    names: BTreeSet<&str>,
    read: impl FnOnce(&BTreeSet<&str>) -> Result<Symbols, SymbolsError>,
) -> Result<Symbols, SymbolsError> {
    match (KEEPER.get(), Incarnation::now()) {
        (Some(keeper), Ok(now)) => {
            let path = keeper.path();
            let also = keeper.names;
            from(
                &path,
                keeper.write,
                now,
                Incarnation::now,
                names,
                also,
                read,
            )
        }
        _ => read(&names),
    }
}

fn from(
    path: &Path,
    write: impl FnOnce(&Path, &[u8]) -> io::Result<()>,
    incarnation: Incarnation,
    now: impl FnOnce() -> io::Result<Incarnation>,
    names: BTreeSet<&str>,
    also: fn() -> Vec<&'static str>,
    read: impl FnOnce(&BTreeSet<&str>) -> Result<Symbols, SymbolsError>,
) -> Result<Symbols, SymbolsError> {
    let kept = (std::fs::read(path).ok())
        .and_then(|text| serde_json::from_slice::<Kept>(&text).ok())
        .filter(|kept| kept.incarnation == incarnation)
        .map(|kept| kept.symbols)
        .unwrap_or_default();
    if names.iter().all(|&name| kept.0.contains_key(name)) {
        return Ok(kept);
    }
    // This read also finds the names that other commands need.
    let mut wanted: BTreeSet<&str> = names;
    wanted.extend(also());
    wanted.extend(kept.0.keys().map(String::as_str));
    let symbols = read(&wanted)?;
    // If a module was loaded or unloaded during the read, the result may have its symbols or not.
    if now().is_ok_and(|now| now == incarnation) {
        let kept = Kept {
            incarnation,
            symbols: symbols.clone(),
        };
        let text = serde_json::to_vec(&kept).map_err(io::Error::from);
        if let Err(error) = text.and_then(|text| write(path, &text)) {
            debug!(%error, "symbols are not kept");
        }
    }
    Ok(symbols)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    const TEXT: &str = "1000 t one\n2000 t two\n3000 t three\t[m]\n";

    fn incarnation(module: u64) -> Incarnation {
        Incarnation {
            boot: "boot".into(),
            modules: [("m".to_owned(), module)].into(),
        }
    }

    /// What was read of the kernel in the course of some calls.
    #[derive(Default)]
    struct Read(RefCell<Vec<String>>);

    impl Read {
        fn load(&self, path: &Path, before: u64, after: u64, names: &[&str]) -> Symbols {
            let names = names.iter().copied().collect();
            let now = || Ok(incarnation(after));
            let write = |path: &Path, text: &[u8]| std::fs::write(path, text);
            from(
                path,
                write,
                incarnation(before),
                now,
                names,
                Vec::new,
                |names| {
                    let list: Vec<&str> = names.iter().copied().collect();
                    self.0.borrow_mut().push(list.join(" "));
                    Symbols::parse(TEXT.as_bytes(), names.iter().copied())
                },
            )
            .unwrap()
        }
    }

    #[test]
    fn symbols_are_read_once_for_each_set_of_modules() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kept");
        let read = Read::default();
        let first = read.load(&path, 1, 1, &["one", "absent"]);
        assert_eq!(read.load(&path, 1, 1, &["absent"]), first);
        assert_eq!(*read.0.borrow(), ["absent one"]);
        // A new name is read with the known ones.
        read.load(&path, 1, 1, &["three"]);
        read.load(&path, 1, 1, &["one", "three"]);
        assert_eq!(*read.0.borrow(), ["absent one", "absent one three"]);
        // Another incarnation, and one that changed meanwhile, which is not kept.
        read.load(&path, 2, 3, &["two"]);
        read.load(&path, 2, 2, &["two"]);
        assert_eq!(read.0.borrow()[2..], ["two", "two"]);
        std::fs::write(&path, "damaged").unwrap();
        assert!(read.load(&path, 2, 2, &["two"]).has_function("two"));
        assert_eq!(read.0.borrow().len(), 5);
    }
}
