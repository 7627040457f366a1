//! `/proc/locks`, the kernel's own list, with which every claim is compared.
//!
//! Format: `lock_get_status()` in `fs/locks.c` (6.1 to 6.12). A line that
//! starts with `->` after its number is a waiter.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::sys::stat::{major, minor};

/// A POSIX lock or waiter. Leases, flocks and OFD locks are skipped, since lockd takes none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PosixLock {
    /// `major:minor` of the file's superblock.
    pub device: (u64, u64),
    /// Inode number of the file.
    pub inode: u64,
    /// First byte.
    pub start: u64,
    /// Last byte, inclusive; `None` is to the end of the file.
    pub end: Option<u64>,
    /// A write lock, else a read lock.
    pub write: bool,
    /// True for a request that is queued behind another lock.
    pub waiting: bool,
    /// Process; lockd's kernel thread for every lock of an NFSv3 client.
    pub pid: u32,
}

/// Every POSIX lock and waiter in the text of `/proc/locks`.
///
/// # Errors
/// Names the first line that does not have the known shape.
pub fn parse(text: &str) -> Result<Vec<PosixLock>> {
    text.lines()
        .filter_map(|line| {
            parse_line(line)
                .with_context(|| format!("/proc/locks line {line:?}"))
                .transpose()
        })
        .collect()
}

fn parse_line(line: &str) -> Result<Option<PosixLock>> {
    let mut words = line.split_whitespace().skip(1).peekable();
    let waiting = words.next_if_eq(&"->").is_some();
    if words.next() != Some("POSIX") {
        return Ok(None);
    }
    let mut word = |what: &'static str| words.next().ok_or_else(|| anyhow!("no {what}"));
    word("advisory")?;
    let write = word("mode")? == "WRITE";
    let pid = word("pid")?.parse().context("pid")?;
    let file = word("file")?;
    let mut file = file.split(':');
    let mut part = |what: &'static str| file.next().ok_or_else(|| anyhow!("no {what}"));
    let device = (
        u64::from_str_radix(part("major")?, 16).context("major")?,
        u64::from_str_radix(part("minor")?, 16).context("minor")?,
    );
    let inode = part("inode")?.parse().context("inode")?;
    let start = word("start")?.parse().context("start")?;
    let end = match word("end")? {
        "EOF" => None,
        end => Some(end.parse().context("end")?),
    };
    Ok(Some(PosixLock {
        device,
        inode,
        start,
        end,
        write,
        waiting,
        pid,
    }))
}

/// The locks and waiters on files of the filesystem that `directory` is on,
/// in order. An NFS mount of that directory is another filesystem, so these
/// are what the *server* holds.
pub(crate) fn on_filesystem_of(directory: &Path) -> Result<Vec<PosixLock>> {
    let device = fs::metadata(directory)
        .with_context(|| format!("{}", directory.display()))?
        .dev();
    let text = fs::read_to_string("/proc/locks").context("/proc/locks")?;
    let mut locks = parse(&text)?;
    locks.retain(|lock| lock.device == (major(device), minor(device)));
    locks.sort();
    Ok(locks)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
1: POSIX  ADVISORY  WRITE 214 00:1c:17 0 9
1: -> POSIX  ADVISORY  READ 215 00:1c:17 5 EOF
2: FLOCK  ADVISORY  WRITE 300 08:01:42 0 EOF
3: LEASE  ACTIVE    READ 301 08:01:43 0 EOF
4: OFDLCK ADVISORY  READ -1 08:01:44 0 EOF
";

    #[test]
    fn posix_locks_and_waiters_are_kept_with_their_ranges() {
        let locks = parse(TEXT).unwrap();
        assert_eq!(
            locks,
            [
                PosixLock {
                    device: (0, 0x1c),
                    inode: 17,
                    start: 0,
                    end: Some(9),
                    write: true,
                    waiting: false,
                    pid: 214,
                },
                PosixLock {
                    device: (0, 0x1c),
                    inode: 17,
                    start: 5,
                    end: None,
                    write: false,
                    waiting: true,
                    pid: 215,
                },
            ]
        );
    }

    #[test]
    fn a_line_of_another_shape_is_named() {
        let error = parse("1: POSIX  ADVISORY  WRITE x 00:1c:17 0 9").unwrap_err();
        assert!(format!("{error:#}").contains("pid"));
    }
}
