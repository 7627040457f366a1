//! The processes of this node, as `/proc` shows them.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub id: i32,
    /// The first 15 bytes of its program's name.
    pub name: String,
}

/// All processes, as directories in `/proc`, with their numbers.
pub(super) fn all() -> io::Result<impl Iterator<Item = (i32, PathBuf)>> {
    let entries = fs::read_dir("/proc")?.flatten();
    Ok(entries.filter_map(|entry| {
        let id = entry.file_name().to_str()?.parse().ok()?;
        Some((id, entry.path()))
    }))
}

/// Those in the network or the mount namespace with these inode numbers, in order. A zombie is in none.
pub fn in_namespaces(network: u64, mounts: u64) -> io::Result<Vec<Process>> {
    let (network, mounts) = (format!("net:[{network}]"), format!("mnt:[{mounts}]"));
    let is = |path: PathBuf, wanted: &str| {
        fs::read_link(path).is_ok_and(|link| link.as_os_str() == wanted)
    };
    let found = all()?.filter(|(_, folder)| {
        is(folder.join("ns/net"), &network) || is(folder.join("ns/mnt"), &mounts)
    });
    let mut found: Vec<Process> = found
        .map(|(id, folder)| Process {
            id,
            name: name(&folder),
        })
        .collect();
    found.sort_by_key(|process| process.id);
    Ok(found)
}

/// The processes in this thread's network or mount namespace.
pub fn beside() -> io::Result<Vec<Process>> {
    let inode = |kind: &str| {
        let found = fs::metadata(format!("/proc/thread-self/ns/{kind}"));
        found.map(|found| found.ino())
    };
    in_namespaces(inode("net")?, inode("mnt")?)
}

/// The name of the process with this directory, cut to 15 bytes; empty if it has ended.
pub(super) fn name(folder: &Path) -> String {
    let comm = fs::read(folder.join("comm")).unwrap_or_default();
    String::from_utf8_lossy(&comm).trim_end().to_owned()
}

/// The letter of its state (proc(5)): `T` if a signal has stopped it, `D` if it waits for
/// something that no signal ends.
pub fn state(id: i32) -> Option<char> {
    let stat = fs::read(format!("/proc/{id}/stat")).ok()?;
    // Its name, in parentheses, may have any bytes.
    let after = stat.iter().rposition(|&byte| byte == b')')?;
    stat.get(after + 2).map(|&letter| letter.into())
}

/// Whether the process watches files (inotify). nfsdcld does, once it serves.
pub fn watches_files(id: i32) -> bool {
    let entries = fs::read_dir(format!("/proc/{id}/fdinfo"));
    let mut entries = entries.into_iter().flatten().flatten();
    entries.any(|entry| fs::read_to_string(entry.path()).is_ok_and(|info| info.contains("inotify")))
}

/// Whether the process has a file open whose path ends so.
pub fn has_open(id: i32, ending: &str) -> bool {
    let entries = fs::read_dir(format!("/proc/{id}/fd"));
    let mut entries = entries.into_iter().flatten().flatten();
    entries.any(|entry| fs::read_link(entry.path()).is_ok_and(|file| file.ends_with(ending)))
}

/// Whether the process with this directory has this file open.
pub(super) fn has_file_open(folder: &Path, wanted: &fs::Metadata) -> bool {
    let entries = fs::read_dir(folder.join("fd"));
    let mut entries = entries.into_iter().flatten().flatten();
    entries.any(|entry| {
        // Of the file, not of the link.
        fs::metadata(entry.path())
            .is_ok_and(|file| (file.dev(), file.ino()) == (wanted.dev(), wanted.ino()))
    })
}

/// The processes in whose mount namespace the filesystem of this device (major, minor) is
/// mounted: one for each namespace.
pub fn with_mount_of(device: (u32, u32)) -> io::Result<Vec<Process>> {
    let mut seen = std::collections::BTreeSet::new();
    let mut found = Vec::new();
    for (id, folder) in all()? {
        // It may end while it is looked at.
        let Ok(namespace) = fs::read_link(folder.join("ns/mnt")) else {
            continue;
        };
        if !seen.insert(namespace) {
            continue;
        }
        let Ok(mounts) = super::mounts::listed_in(folder.join("mountinfo")) else {
            continue;
        };
        if mounts.iter().any(|mount| mount.device == device) {
            let name = name(&folder);
            found.push(Process { id, name });
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_in_its_namespaces() {
        let us = i32::try_from(std::process::id()).unwrap();
        let found = beside().unwrap();
        assert!(found.iter().any(|process| process.id == us), "{found:?}");
        let mounts = fs::metadata("/proc/self/ns/mnt").unwrap().ino();
        let found = in_namespaces(0, mounts).unwrap();
        assert!(found.iter().any(|process| process.id == us), "{found:?}");
        assert!(in_namespaces(0, 0).unwrap().is_empty());
        // The process's state is its first thread's, which waits for this one.
        assert!(matches!(state(us), Some('R' | 'S')), "{:?}", state(us));
        assert_eq!(state(-1), None);
    }
}
