//! The table of what lockd holds: hosts, files, and the locks, waiters and shares
//! between them.

use std::collections::BTreeSet;

pub use nlmfo_common::protocol::Mode;
use serde::{Deserialize, Serialize};

use super::host::Host;
use crate::foreign::Name;

/// The bytes of a file that a lock covers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "Ends", from = "Ends")]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// [`Range::EOF`]: to the end of the file, however far it grows.
    pub end: u64,
}

impl Range {
    /// The kernel's `OFFSET_MAX`.
    pub const EOF: u64 = i64::MAX as u64;

    /// Whether some byte is in both.
    pub fn overlaps(self, other: Range) -> bool {
        self.start <= other.end && other.start <= self.end
    }

    /// The range of an NLM call, which gives its length; 0 means to the end of the file.
    pub fn of_call(start: u64, len: u64) -> Self {
        let end = match len {
            0 => Range::EOF,
            _ => start.saturating_add(len - 1).min(Range::EOF),
        };
        Range { start, end }
    }

    /// Whether all of `other` is inside.
    pub(crate) fn covers(self, other: Range) -> bool {
        self.start <= other.start && self.end >= other.end
    }
}

impl std::fmt::Display for Range {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.end {
            Range::EOF => write!(f, "{}-EOF", self.start),
            end => write!(f, "{}-{end}", self.start),
        }
    }
}

/// [`Range`] as text has it: `end` is null for a lock to the end of the file.
#[derive(Serialize, Deserialize)]
struct Ends {
    start: u64,
    end: Option<u64>,
}

impl From<Range> for Ends {
    fn from(range: Range) -> Self {
        Ends {
            start: range.start,
            end: (range.end != Range::EOF).then_some(range.end),
        }
    }
}

impl From<Ends> for Range {
    fn from(ends: Ends) -> Self {
        Range {
            start: ends.start,
            end: ends.end.unwrap_or(Range::EOF),
        }
    }
}

/// Index of a host in [`LockTable::hosts`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostId(pub(crate) u32);

impl HostId {
    /// Its index in [`LockTable::hosts`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Index of a file in [`LockTable::files`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub(crate) u32);

impl FileId {
    /// Its index in [`LockTable::files`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A lockd host and what else the kernel knows of the client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostInfo {
    /// What lockd tells it from others by.
    pub key: Host,
    /// The client's own name (`caller_name`).
    pub name: Name,
    /// The name that statd monitors, empty if the client is not monitored.
    pub nsm_name: Name,
    /// The cookie that lockd gave statd, zeros if the client is not monitored.
    pub nsm_priv: [u8; 16],
    /// Changes with each call of the client to lockd.
    pub expires: u64,
}

/// Major and minor number of the device, and the inode.
pub type Inode = (u32, u32, u64);

/// A file that lockd holds open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileInfo {
    /// Major number of the filesystem's device.
    pub major: u32,
    /// Its minor number.
    pub minor: u32,
    /// Inode number.
    pub ino: u64,
    /// The NFS file handle, at most 128 bytes.
    pub fh: Vec<u8>,
}

impl FileInfo {
    /// What identifies the file on this node.
    pub fn inode(&self) -> Inode {
        (self.major, self.minor, self.ino)
    }
}

/// Whether a lock keeps another owner's request from being granted.
pub fn conflict(held: (Mode, Range), asked: (Mode, Range)) -> bool {
    let shared = held.0 == Mode::Read && asked.0 == Mode::Read;
    !shared && held.1.overlaps(asked.1)
}

/// A held lock. Its owner, in lockd's sense, is its host and svid together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The client, through one VIP.
    pub host: HostId,
    /// The locked file.
    pub file: FileId,
    /// What tells the owners of one host apart; most clients number their processes.
    pub svid: u32,
    /// Read (shared) or write (exclusive).
    pub mode: Mode,
    /// The bytes that it covers.
    pub range: Range,
}

/// A blocked request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Waiter {
    /// The client that waits.
    pub host: HostId,
    /// The file that it wants to lock.
    pub file: FileId,
    /// As in [`Lock`].
    pub svid: u32,
    /// Read (shared) or write (exclusive).
    pub mode: Mode,
    /// The bytes that it asks for.
    pub range: Range,
    /// The lock is granted, and lockd is notifying the client.
    pub granted: bool,
}

/// A DOS share reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// The client, through one VIP.
    pub host: HostId,
    /// The whole of this file.
    pub file: FileId,
    /// `fsh_access`: 0 none, 1 read, 2 write, 3 both.
    pub access: u32,
    /// `fsh_mode`, what is denied to others: the same numbers.
    pub deny: u32,
    /// The first 64 bytes of the owner handle.
    pub owner: Vec<u8>,
}

/// All that lockd holds, in every network namespace, sorted by VIP, client, file
/// and range.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockTable {
    /// Those that a lock, waiter or share names.
    pub hosts: Vec<HostInfo>,
    /// Those that a lock, waiter or share names.
    pub files: Vec<FileInfo>,
    /// Held locks.
    pub locks: Vec<Lock>,
    /// Blocked requests.
    pub waiters: Vec<Waiter>,
    /// DOS share reservations.
    pub shares: Vec<Share>,
}

impl LockTable {
    /// The host of a lock, waiter or share of this table.
    pub fn host(&self, id: HostId) -> &HostInfo {
        &self.hosts[id.0 as usize]
    }

    /// The file of a lock, waiter or share of this table.
    pub fn file(&self, id: FileId) -> &FileInfo {
        &self.files[id.0 as usize]
    }

    /// The part of the table that belongs to hosts that `keep` accepts, with all
    /// hosts and files.
    pub fn part(&self, keep: impl Fn(&Host) -> bool) -> LockTable {
        let kept: Vec<bool> = self.hosts.iter().map(|host| keep(&host.key)).collect();
        let keep = |id: HostId| kept[id.0 as usize];
        LockTable {
            hosts: self.hosts.clone(),
            files: self.files.clone(),
            locks: (self.locks.iter().copied())
                .filter(|lock| keep(lock.host))
                .collect(),
            waiters: (self.waiters.iter().copied())
                .filter(|waiter| keep(waiter.host))
                .collect(),
            shares: (self.shares.iter())
                .filter(|share| keep(share.host))
                .cloned()
                .collect(),
        }
    }

    /// Whether nothing is held, waited for or reserved.
    pub fn is_empty(&self) -> bool {
        self.locks.is_empty() && self.waiters.is_empty() && self.shares.is_empty()
    }

    /// The hosts that hold, wait for or have reserved something, each once, in
    /// order.
    pub fn active_hosts(&self) -> Vec<HostId> {
        distinct(
            (self.locks.iter().map(|lock| lock.host))
                .chain(self.waiters.iter().map(|waiter| waiter.host))
                .chain(self.shares.iter().map(|share| share.host)),
        )
    }

    /// The files that something is held, waited for or reserved on, each once, in
    /// order.
    pub fn active_files(&self) -> Vec<FileId> {
        distinct(
            (self.locks.iter().map(|lock| lock.file))
                .chain(self.waiters.iter().map(|waiter| waiter.file))
                .chain(self.shares.iter().map(|share| share.file)),
        )
    }
}

/// Each value once, in order.
pub(super) fn distinct<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    let values: BTreeSet<T> = values.collect();
    values.into_iter().collect()
}
