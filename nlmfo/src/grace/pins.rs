//! Pinned objects and their paths: the only owner of the gate's persistent state.
//!
//! `BPFFS/nlmfo/NETNS/vN/` has `maps/NAME`, `progs/NAME`, `links/NAME` for the probes,
//! `links/tc-IFINDEX` for the devices with tcx, `clsact/IFINDEX` (an empty directory) for the devices
//! that got their qdisc from us, `lockd-N` for the lockd that it was loaded for, and finally
//! `ready-HASH`, created when everything is in place: if it is missing, the loader was killed.
//!
//! NETNS is the network namespace's cookie, N is [`PINNED_VERSION`], HASH is that of the layout that
//! the programs were loaded with and of [`lockd::incarnation`]: the probes of an unloaded lockd are
//! gone, even if a new lockd is at the same addresses.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use nlmfo_common::gate::{GateLayout, PINNED_VERSION};

use super::GraceError;
use crate::kernel::{bpffs, lockd, netns};

const READY: &str = "ready-";
const LOCKD: &str = "lockd-";
const DEVICE_LINK: &str = "tc-";

/// The directory of one network namespace and version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pins {
    folder: PathBuf,
}

/// The state of a pinned gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Absent,
    /// Incomplete: a loader was killed.
    Partial,
    /// Complete, for the layout with this hash.
    Ready(u64),
}

impl Pins {
    /// Those of this network namespace.
    pub fn here() -> Result<Self, GraceError> {
        let namespace = namespace_folder(netns::cookie().map_err(GraceError::Namespace)?);
        Ok(Pins {
            folder: namespace.join(format!("v{PINNED_VERSION}")),
        })
    }

    pub(super) fn at(folder: impl Into<PathBuf>) -> Self {
        Pins {
            folder: folder.into(),
        }
    }

    /// The directories of all versions in this network namespace.
    pub fn all_versions_here() -> Result<Vec<Self>, GraceError> {
        let namespace = namespace_folder(netns::cookie().map_err(GraceError::Namespace)?);
        Ok(versions(&namespace)?.into_iter().map(Pins::at).collect())
    }

    pub fn map(&self, name: &str) -> PathBuf {
        self.folder.join("maps").join(name)
    }

    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join("progs").join(name)
    }

    /// A probe's link.
    pub fn link(&self, program: &str) -> PathBuf {
        self.folder.join("links").join(program)
    }

    /// A device's tcx link.
    pub fn device_link(&self, index: u32) -> PathBuf {
        self.folder
            .join("links")
            .join(format!("{DEVICE_LINK}{index}"))
    }

    /// The devices that have a link.
    pub fn linked_devices(&self) -> Result<Vec<u32>, GraceError> {
        let names = names_in(&self.folder.join("links"))?;
        let index = |name: String| name.strip_prefix(DEVICE_LINK)?.parse().ok();
        Ok(names.into_iter().filter_map(index).collect())
    }

    /// Records that nlmfo created the device's qdisc.
    pub fn note_qdisc(&self, index: u32) -> Result<(), GraceError> {
        make_folder(&self.qdisc(index))
    }

    pub fn forget_qdisc(&self, index: u32) -> Result<(), GraceError> {
        gone(fs::remove_dir(self.qdisc(index)), &self.qdisc(index))
    }

    /// The devices whose qdisc nlmfo created.
    pub fn noted_qdiscs(&self) -> Result<Vec<u32>, GraceError> {
        let names = names_in(&self.folder.join("clsact"))?;
        Ok(names.iter().filter_map(|name| name.parse().ok()).collect())
    }

    fn qdisc(&self, index: u32) -> PathBuf {
        self.folder.join("clsact").join(index.to_string())
    }

    /// Makes the empty directories.
    pub fn create(&self) -> Result<(), GraceError> {
        bpffs::mount()?;
        ["maps", "progs", "links", "clsact"]
            .iter()
            .try_for_each(|part| make_folder(&self.folder.join(part)))
    }

    /// Marks the gate as complete, for this layout.
    pub fn set_ready(&self, layout: &GateLayout) -> Result<(), GraceError> {
        if let Some(lockd) = lockd::incarnation() {
            make_folder(&self.folder.join(format!("{LOCKD}{lockd}")))?;
        }
        make_folder(&self.folder.join(format!("{READY}{:016x}", hash(layout))))
    }

    /// The [`lockd::incarnation`] that it was loaded for.
    pub fn lockd(&self) -> Result<Option<u64>, GraceError> {
        let names = names_in(&self.folder)?;
        let lockd = |name: &String| name.strip_prefix(LOCKD)?.parse().ok();
        Ok(names.iter().find_map(lockd))
    }

    pub fn state(&self) -> Result<State, GraceError> {
        if !self.folder.is_dir() {
            return Ok(State::Absent);
        }
        let ready = names_in(&self.folder)?.iter().find_map(|name| {
            let hash = name.strip_prefix(READY)?;
            u64::from_str_radix(hash, 16).ok()
        });
        Ok(ready.map_or(State::Partial, State::Ready))
    }

    /// Unpins everything; the kernel frees objects that nothing else holds. Returns the number of
    /// pinned objects.
    pub fn remove(&self) -> Result<usize, GraceError> {
        // First `ready`, in case this is interrupted. Then the links: without them, no program runs any
        // more.
        let mut removed = 0;
        for name in names_in(&self.folder)? {
            if name.starts_with(READY) {
                let ready = self.folder.join(name);
                gone(fs::remove_dir(&ready), &ready)?;
            }
        }
        for part in ["links", "progs", "maps"] {
            let part = self.folder.join(part);
            for name in names_in(&part)? {
                let pinned = part.join(name);
                gone(fs::remove_file(&pinned), &pinned)?;
                removed += 1;
            }
        }
        gone(fs::remove_dir_all(&self.folder), &self.folder)?;
        if let Some(namespace) = self.folder.parent() {
            // Others may still be in them.
            let _ = fs::remove_dir(namespace);
            let _ = fs::remove_dir(bpffs::folder());
        }
        Ok(removed)
    }
}

/// Removes directories of ours in which nothing is pinned: a loader was killed at its first step.
pub(super) fn remove_empty() -> Result<(), GraceError> {
    for name in names_in(bpffs::folder())? {
        // Others may still be in them.
        let _ = fs::remove_dir(bpffs::folder().join(name));
    }
    let _ = fs::remove_dir(bpffs::folder());
    Ok(())
}

/// The network namespaces that something is pinned for, and their versions.
pub(super) fn all() -> Result<Vec<(u64, Vec<Pins>)>, GraceError> {
    let mut all = Vec::new();
    for name in names_in(bpffs::folder())? {
        if let Ok(cookie) = name.parse() {
            let versions = versions(&namespace_folder(cookie))?;
            all.push((cookie, versions.into_iter().map(Pins::at).collect()));
        }
    }
    Ok(all)
}

fn namespace_folder(cookie: u64) -> PathBuf {
    bpffs::folder().join(cookie.to_string())
}

fn versions(namespace: &Path) -> Result<Vec<PathBuf>, GraceError> {
    let names = names_in(namespace)?;
    Ok(names.into_iter().map(|name| namespace.join(name)).collect())
}

/// Empty if the directory does not exist.
fn names_in(folder: &Path) -> Result<Vec<String>, GraceError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|error| GraceError::pin("list", folder, &error))?,
    };
    entries
        .map(|entry| {
            let entry = entry.map_err(|error| GraceError::pin("list", folder, &error))?;
            Ok(entry.file_name().to_string_lossy().into_owned())
        })
        .collect()
}

fn make_folder(path: &Path) -> Result<(), GraceError> {
    fs::create_dir_all(path).map_err(|error| GraceError::pin("make", path, &error))
}

fn gone(removal: io::Result<()>, path: &Path) -> Result<(), GraceError> {
    match removal {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.map_err(|error| GraceError::pin("remove", path, &error)),
    }
}

/// FNV-1a of the layout's bytes and of [`lockd::incarnation`]: the same in every build.
pub(super) fn hash(layout: &GateLayout) -> u64 {
    let start = std::ptr::from_ref(layout).cast::<u8>();
    // SAFETY: plain old data without padding (aya's `Pod` is implemented for it), and
    // `layout` outlives the slice.
    let bytes = unsafe { std::slice::from_raw_parts(start, size_of::<GateLayout>()) };
    let loading = lockd::incarnation().unwrap_or_default().to_ne_bytes();
    let bytes = bytes.iter().chain(&loading);
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// On an ordinary filesystem: directories and files work alike.
    #[test]
    fn it_is_ready_only_when_all_is_in_place() {
        let root = tempfile::tempdir().unwrap();
        let pins = Pins::at(root.path().join("7/v1"));
        assert_eq!(pins.state().unwrap(), State::Absent);
        for part in ["maps", "progs", "links"] {
            make_folder(&pins.folder.join(part)).unwrap();
        }
        assert_eq!(pins.state().unwrap(), State::Partial);
        let layout = GateLayout::default();
        pins.set_ready(&layout).unwrap();
        assert_eq!(pins.state().unwrap(), State::Ready(hash(&layout)));
        let moved = GateLayout {
            grace_net_id: 8,
            ..layout
        };
        assert_ne!(hash(&layout), hash(&moved));
    }

    #[test]
    fn removing_counts_what_was_pinned_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let namespace = root.path().join("7");
        let pins = Pins::at(namespace.join("v1"));
        for part in ["maps", "progs", "links"] {
            make_folder(&pins.folder.join(part)).unwrap();
        }
        pins.note_qdisc(4).unwrap();
        pins.set_ready(&GateLayout::default()).unwrap();
        for pinned in [pins.map("GATE"), pins.device_link(3), pins.link("audit")] {
            fs::write(pinned, "").unwrap();
        }
        assert_eq!(pins.linked_devices().unwrap(), [3]);
        assert_eq!(pins.noted_qdiscs().unwrap(), [4]);
        assert_eq!(pins.remove().unwrap(), 3);
        assert!(!namespace.exists());
        assert_eq!(pins.remove().unwrap(), 0);
    }
}
