//! Which of a VIP's locks were reclaimed. Pure: takes a record and a table, returns lines.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;

use super::record::Record;
use crate::observe::describe::{LockLine, hex};
use crate::observe::table::{LockTable, Mode, Range};
use crate::observe::unlocks::Unlocked3;

/// Owner and file of a lock: what stays the same on another node. A client may come back
/// over another transport, and the device number differs there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Owner {
    client: IpAddr,
    svid: u32,
    /// The file handle in hexadecimal.
    fh: String,
}

/// The locks that one VIP's clients held on the old node.
#[derive(Clone, Debug, Default)]
pub struct Expected {
    locks: Vec<LockLine>,
}

impl Expected {
    pub fn of(record: &Record, vip: IpAddr) -> Self {
        let of_vip = record.locks.iter().filter(|lock| lock.host.vip == vip);
        Expected {
            locks: of_vip.cloned().collect(),
        }
    }

    /// The locks of all VIPs.
    pub fn all(record: &Record) -> Self {
        Expected {
            locks: record.locks.clone(),
        }
    }

    pub fn len(&self) -> usize {
        self.locks.len()
    }

    pub fn is_empty(&self) -> bool {
        self.locks.is_empty()
    }

    /// The clients that hold all their locks again.
    pub fn settled(&self, held: &LockTable) -> BTreeSet<IpAddr> {
        let mut clients: BTreeSet<IpAddr> =
            (self.locks.iter()).map(|lock| lock.host.client).collect();
        for lock in self.missing(held) {
            clients.remove(&lock.host.client);
        }
        clients
    }

    /// The locks that are not held again. A lock may have been extended or merged since:
    /// what counts is that all its bytes are locked in at least the same mode.
    pub fn missing(&self, held: &LockTable) -> Vec<&LockLine> {
        let mut by_owner: HashMap<Owner, Vec<(Range, Mode)>> = HashMap::new();
        for lock in &held.locks {
            let owner = Owner {
                client: held.host(lock.host).key.client,
                svid: lock.svid,
                fh: hex(&held.file(lock.file).fh),
            };
            let locks = by_owner.entry(owner).or_default();
            locks.push((lock.range, lock.mode));
        }
        (self.locks.iter())
            .filter(|lock| {
                let owner = Owner {
                    client: lock.host.client,
                    svid: lock.svid,
                    fh: lock.file.fh.clone(),
                };
                let held = by_owner.get(&owner).map_or(&[][..], Vec::as_slice);
                !is_covered(lock, held)
            })
            .collect()
    }
}

fn is_covered(lock: &LockLine, held: &[(Range, Mode)]) -> bool {
    (held.iter()).any(|(range, mode)| range.covers(lock.range) && *mode >= lock.mode)
}

/// Locks that are not held again: those that may still be reclaimed, and those that their clients
/// gave up in the meantime.
pub fn split<'a>(
    missing: Vec<&'a LockLine>,
    unlocked: &[Unlocked3],
) -> (Vec<&'a LockLine>, Vec<&'a LockLine>) {
    let is_given_up = |lock: &&LockLine| {
        unlocked.iter().any(|call| {
            call.vip == lock.host.vip
                && call.client == lock.host.client
                && call.svid == lock.svid
                && hex(&call.fh) == lock.file.fh
                && call.range.covers(lock.range)
        })
    };
    missing.into_iter().partition(|lock| !is_given_up(lock))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::record::sample;

    const VIP: &str = "10.77.0.1";

    fn lock(start: u64, end: u64, mode: Mode) -> LockLine {
        LockLine {
            mode,
            ..sample::lock(VIP, start, end)
        }
    }

    #[test]
    fn a_lock_is_back_when_all_its_bytes_are() {
        let expected = lock(10, 19, Mode::Read);
        for (held, back) in [
            ((10, 19, Mode::Read), true),
            ((0, Range::EOF, Mode::Read), true),
            ((10, 19, Mode::Write), true),
            ((10, 18, Mode::Read), false),
            ((11, 30, Mode::Read), false),
        ] {
            let (start, end, mode) = held;
            let range = Range { start, end };
            assert_eq!(is_covered(&expected, &[(range, mode)]), back, "{held:?}");
        }
        assert!(!is_covered(&expected, &[]));
        let write = lock(10, 19, Mode::Write);
        let range = write.range;
        assert!(!is_covered(&write, &[(range, Mode::Read)]));
    }

    #[test]
    fn what_is_expected_is_the_vips_own() {
        let other = "10.77.0.2";
        let mut record = sample::record(&[VIP, other]);
        record.locks = vec![lock(10, 19, Mode::Read), sample::lock(other, 0, 1)];
        let text = serde_json::to_string(&record).unwrap();
        let record: Record = serde_json::from_str(&text).unwrap();
        let expected = Expected::of(&record, VIP.parse().unwrap());
        assert_eq!(expected.len(), 1);
        let missing = expected.missing(&LockTable::default());
        assert_eq!(missing, [&record.locks[0]]);
    }

    #[test]
    fn what_a_client_gave_up_is_not_waited_for() {
        let expected = Expected {
            locks: vec![lock(0, 9, Mode::Write)],
        };
        let unlocked = |change: fn(&mut Unlocked3)| {
            let mut call = Unlocked3 {
                vip: VIP.parse().unwrap(),
                client: "10.77.1.1".parse().unwrap(),
                svid: 3,
                fh: vec![1, 0xff],
                range: Range::of_call(0, 0),
            };
            change(&mut call);
            let missing = expected.missing(&LockTable::default());
            let (missing, given_up) = split(missing, &[call]);
            (missing.len(), given_up.len())
        };
        assert_eq!(unlocked(|_| {}), (0, 1));
        assert_eq!(unlocked(|call| call.range = Range::of_call(0, 10)), (0, 1));
        assert_eq!(unlocked(|call| call.range = Range::of_call(0, 9)), (1, 0));
        assert_eq!(unlocked(|call| call.range = Range::of_call(1, 0)), (1, 0));
        assert_eq!(unlocked(|call| call.svid = 8), (1, 0));
        assert_eq!(unlocked(|call| call.fh = vec![1]), (1, 0));
        assert_eq!(unlocked(|call| call.client = call.vip), (1, 0));
        assert_eq!(unlocked(|call| call.vip = call.client), (1, 0));
    }
}
