//! The mounts of this thread's mount namespace, and the escaped paths of the kernel and nfs-utils.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

/// The mounts of this thread's mount namespace, and those of the first process's.
pub(super) const OURS: &str = "/proc/thread-self/mountinfo";
pub(super) const OF_INIT: &str = "/proc/1/mountinfo";

/// One line of `/proc/self/mountinfo`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// (major, minor) of the filesystem.
    pub device: (u32, u32),
    /// The part of the filesystem that is mounted: `/` for all of it.
    pub root: PathBuf,
    pub mount_point: PathBuf,
    pub filesystem: String,
}

/// All mounts, in the order in which they were made.
pub fn mounts() -> io::Result<Vec<Mount>> {
    listed_in(OURS)
}

/// The mounts in such a list.
pub(super) fn listed_in(list: impl AsRef<std::path::Path>) -> io::Result<Vec<Mount>> {
    Ok(std::fs::read_to_string(list)?
        .lines()
        .filter_map(parse_line)
        .collect())
}

/// Whether this is where the kernel's own filesystems are mounted.
pub fn is_kernels(path: &std::path::Path) -> bool {
    ["/proc", "/sys", "/dev"]
        .iter()
        .any(|root| path.starts_with(root))
}

fn parse_line(line: &str) -> Option<Mount> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ').skip(2);
    let (major, minor) = fields.next()?.split_once(':')?;
    Some(Mount {
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: unquote(fields.next()?),
        mount_point: unquote(fields.next()?),
        filesystem: filesystem.split(' ').next()?.to_owned(),
    })
}

/// A path from a file where blanks, newlines and backslashes are `\ooo`, as in
/// `/proc/mounts` and `/var/lib/nfs/etab`.
pub(super) fn unquote(word: &str) -> PathBuf {
    let bytes = word.as_bytes();
    let mut path = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let octal = bytes.get(at + 1..at + 4).filter(|_| bytes[at] == b'\\');
        let byte = octal.and_then(|o| u8::from_str_radix(str::from_utf8(o).ok()?, 8).ok());
        path.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_with_optional_fields() {
        let line = "36 35 98:0 /mnt1 /mnt\\040two rw,noatime shared:1 master:2 - ext3 /dev/root rw";
        let mount = parse_line(line).unwrap();
        assert_eq!(mount.device, (98, 0));
        assert_eq!(mount.root, PathBuf::from("/mnt1"));
        assert_eq!(mount.mount_point, PathBuf::from("/mnt two"));
        assert_eq!(mount.filesystem, "ext3");
        assert_eq!(parse_line("36 35 98:0"), None);
    }

    #[test]
    fn unquotes_what_the_kernel_quotes() {
        assert_eq!(unquote("/a\\011b\\134c"), PathBuf::from("/a\tb\\c"));
        assert_eq!(unquote("/a\\9\\04"), PathBuf::from("/a\\9\\04"));
    }

    #[test]
    fn this_process_has_a_root() {
        assert!(
            mounts()
                .unwrap()
                .iter()
                .any(|m| m.mount_point.as_os_str() == "/")
        );
    }
}
