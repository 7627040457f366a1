//! Known locks with client and address, to compare lockers, nlmfo's reports and the kernel's list.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};

use super::locker::{Mode, Range};
use super::proc_locks::PosixLock;

/// A held lock, as its client and the tool under test know it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Known {
    pub vip: IpAddr,
    pub client: IpAddr,
    pub transport: Transport,
    pub version: NlmVersion,
    pub inode: u64,
    pub start: u64,
    /// Last byte, inclusive; `None` is to the end of the file.
    pub end: Option<u64>,
    pub write: bool,
}

impl Known {
    /// A lock of a client that speaks NLM v4 over TCP, as Linux does for a
    /// usual NFSv3 mount.
    pub fn linux(vip: IpAddr, client: IpAddr, inode: u64, range: Range, mode: Mode) -> Known {
        Known {
            vip,
            client,
            transport: Transport::Tcp,
            version: NlmVersion::V4,
            inode,
            start: range.start,
            end: range.end(),
            write: mode == Mode::Write,
        }
    }
}

/// What `/proc/locks` can say of a lock.
pub type Bare = (u64, u64, Option<u64>, bool);

fn bare_known(known: &Known) -> Bare {
    (known.inode, known.start, known.end, known.write)
}

fn bare_lock(lock: &PosixLock) -> Bare {
    (lock.inode, lock.start, lock.end, lock.write)
}

/// Compares the kernel's list with what is known, as multisets: two owners may
/// hold the same range for reading.
pub fn ensure_kernel_holds<'a>(
    locks: &[PosixLock],
    known: impl IntoIterator<Item = &'a Known>,
) -> Result<()> {
    let mut expected: Vec<Bare> = known.into_iter().map(bare_known).collect();
    let mut held: Vec<Bare> = locks
        .iter()
        .filter(|lock| !lock.waiting)
        .map(bare_lock)
        .collect();
    expected.sort_unstable();
    held.sort_unstable();
    ensure!(
        held == expected,
        "the kernel holds (inode, start, end, write) {held:?}, expected {expected:?}"
    );
    Ok(())
}

/// Compares two sets and names what differs.
pub fn ensure_same<T: Ord + std::fmt::Debug>(
    what: &str,
    expected: &BTreeSet<T>,
    seen: &BTreeSet<T>,
) -> Result<()> {
    let missing: Vec<_> = expected.difference(seen).collect();
    let extra: Vec<_> = seen.difference(expected).collect();
    ensure!(
        missing.is_empty() && extra.is_empty(),
        "{what}: missing {missing:#?}, not expected {extra:#?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(start: u64) -> Known {
        Known::linux(
            "10.77.0.1".parse().unwrap(),
            "10.77.1.1".parse().unwrap(),
            5,
            Range::new(start, 10),
            Mode::Read,
        )
    }

    fn held(start: u64, waiting: bool) -> PosixLock {
        PosixLock {
            device: (0, 1),
            inode: 5,
            start,
            end: Some(start + 9),
            write: false,
            waiting,
            pid: 1,
        }
    }

    #[test]
    fn waiters_are_not_held_and_doubles_count() {
        let locks = [held(0, false), held(0, false), held(0, true)];
        assert!(ensure_kernel_holds(&locks, &[known(0), known(0)]).is_ok());
        assert!(ensure_kernel_holds(&locks, &[known(0)]).is_err());
    }

    #[test]
    fn differences_are_named_on_both_sides() {
        let error = ensure_same("locks", &BTreeSet::from([1, 2]), &BTreeSet::from([2, 3]));
        let text = error.unwrap_err().to_string().replace(['\n', ' '], "");
        assert_eq!(text, "locks:missing[1,],notexpected[3,]");
    }
}
