//! `/proc/locks`: the kernel's list of every file lock.

use std::fs::File;
use std::io;
use std::path::Path;

use nlmfo_common::version::Version;
use rustix::fs::{major, minor};

const LIST: &str = "/proc/locks";

/// Opens the list. Each read of it takes the kernel's lock on the list again and
/// gives at most a page of text.
pub fn open() -> io::Result<File> {
    File::open(LIST)
}

/// Lines of holders in a piece of the list. A waiter's line has an arrow before
/// the lock's class (`lock_get_status`, fs/locks.c); the only other `>` is that
/// of `<none>`, for a lock without an inode.
pub fn holders(text: &[u8]) -> u64 {
    let count = |wanted| text.iter().filter(|&&byte| byte == wanted).count() as u64;
    count(b'\n') + count(b'<') - count(b'>')
}

/// The processes with a `flock` lock on the file; none if the list cannot be read.
pub fn flock_holders(device: u64, inode: u64) -> Vec<u32> {
    let list = std::fs::read_to_string(LIST).unwrap_or_default();
    flock_holders_in(&list, device, inode)
}

/// `2: FLOCK  ADVISORY  WRITE 422 00:19:1034 0 EOF`: the process that took the lock, and
/// the file's device in hexadecimal and inode (`lock_get_status`, fs/locks.c, 6.1 to 7.3).
fn flock_holders_in(list: &str, device: u64, inode: u64) -> Vec<u32> {
    let file = format!("{:02x}:{:02x}:{inode}", major(device), minor(device));
    let holder = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // One that waits has an arrow behind its number.
        match words[..] {
            [_, "FLOCK", _, _, pid, there, ..] if there == file => pid.parse().ok(),
            _ => None,
        }
    };
    list.lines().filter_map(holder).collect()
}

/// Longest command line that is shown, in characters.
const COMMAND_SHOWN: usize = 200;

/// A process's command line for people; none if it is gone.
pub fn command_line(pid: u32) -> Option<String> {
    let line = std::fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline")).ok()?;
    let words = line.strip_suffix(b"\0")?.split(|&byte| byte == 0);
    let words: Vec<String> = words.map(|word| word.escape_ascii().to_string()).collect();
    Some(words.join(" ").chars().take(COMMAND_SHOWN).collect())
}

/// A lock or lease in the list. Lines without an inode, or in an unknown format, are skipped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// `POSIX`, `FLOCK`, `OFDLCK`, `LEASE`, `DELEG` or `LAYOUT`.
    pub class: String,
    pub write: bool,
    pub pid: i32,
    pub major: u32,
    pub minor: u32,
    pub ino: u64,
    pub start: u64,
    /// The last byte; none to the end of the file.
    pub end: Option<u64>,
}

/// Whether the kernel queues requests of NFS clients that block on a local filesystem. Some kernels
/// tell the client that it is blocked, and queue nothing: the client asks again.
pub fn queues_requests(version: Option<Version>) -> bool {
    let line = version.map(|version| (version.major, version.minor));
    !line.is_some_and(|line| ((6, 7)..(6, 13)).contains(&line))
}

/// Everything that is held, without waiters.
pub fn held() -> io::Result<Vec<Listed>> {
    let text = std::fs::read_to_string("/proc/locks")?;
    Ok(text.lines().filter_map(listed).collect())
}

/// `lock_get_status()`, fs/locks.c, 6.1 to 7.3.
fn listed(line: &str) -> Option<Listed> {
    let mut words = line.split_ascii_whitespace().skip(1);
    let class = words.next().filter(|word| *word != "->")?.to_owned();
    let _kind = words.next()?;
    let write = words.next()? == "WRITE";
    let pid = words.next()?.parse().ok()?;
    let mut file = words.next()?.split(':');
    let mut number = || u32::from_str_radix(file.next()?, 16).ok();
    let (major, minor) = (number()?, number()?);
    let ino = file.next()?.parse().ok()?;
    let start = words.next()?.parse().ok()?;
    let end = match words.next()? {
        "EOF" => None,
        end => Some(end.parse().ok()?),
    };
    Some(Listed {
        class,
        write,
        pid,
        major,
        minor,
        ino,
        start,
        end,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_held_lock_is_read_and_no_waiter() {
        let line = "3: FLOCK  ADVISORY  WRITE 711 00:1d:28 0 EOF";
        let flock = Listed {
            class: "FLOCK".into(),
            write: true,
            pid: 711,
            major: 0,
            minor: 0x1d,
            ino: 28,
            start: 0,
            end: None,
        };
        assert_eq!(listed(line), Some(flock));
        assert_eq!(listed("1: -> POSIX  ADVISORY  READ 5 00:1d:28 0 9"), None);
        assert_eq!(
            listed("2: LEASE  BREAKING  BREAKER   READ 7 <none>:0 0 EOF"),
            None
        );
        let posix = listed("1: POSIX  ADVISORY  READ 5 00:1d:28 0 9").unwrap();
        assert_eq!((posix.write, posix.end), (false, Some(9)));
    }

    #[test]
    fn waiters_are_not_holders() {
        let text = b"1: POSIX  ADVISORY  WRITE 512 00:23:2 0 9\n\
                     1:  -> POSIX  ADVISORY  WRITE 512 00:23:2 0 9\n\
                     2: LEASE  BREAKING  BREAKER   READ 7 <none>:0 0 EOF\n";
        assert_eq!(holders(text), 2);
    }

    #[test]
    fn a_holder_is_found_by_the_file_it_locks() {
        let list = "1: POSIX  ADVISORY  WRITE 400 00:19:1034 0 EOF\n\
                    2: FLOCK  ADVISORY  WRITE 422 00:19:1034 0 EOF\n\
                    2: -> FLOCK  ADVISORY  WRITE 423 00:19:1034 0 EOF\n\
                    3: FLOCK  ADVISORY  READ 424 00:19:1034 0 EOF\n\
                    4: FLOCK  ADVISORY  WRITE 425 08:01:1034 0 EOF\n";
        assert_eq!(
            flock_holders_in(list, rustix::fs::makedev(0, 0x19), 1034),
            [422, 424]
        );
        assert_eq!(
            flock_holders_in(list, rustix::fs::makedev(0, 0x19), 1035),
            [0; 0]
        );
    }
}
