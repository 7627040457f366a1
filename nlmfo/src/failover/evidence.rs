//! What two snapshots and the counters between them prove. Pure: facts in, verdict out.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use foldhash::fast::RandomState;
use serde::Serialize;

use crate::observe::counters::{Counters, PerVip};
use crate::observe::host::Host;
use crate::observe::table::{FileId, HostId, LockTable, Mode, Range};

/// A lock, waiter or share as it is compared between snapshots, by its identity in the
/// kernel, not by its address in memory, which may change.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Item {
    pub host: Host,
    /// Device and inode.
    pub file: (u32, u32, u64),
    pub what: What,
}

/// What an item of a VIP's state is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum What {
    Lock {
        svid: u32,
        mode: Mode,
        range: Range,
    },
    Waiter {
        svid: u32,
        mode: Mode,
        range: Range,
    },
    Share {
        owner: Vec<u8>,
        access: u32,
        deny: u32,
    },
}

fn item(table: &LockTable, host: HostId, file: FileId, what: What) -> Item {
    let info = table.file(file);
    Item {
        host: table.host(host).key,
        file: (info.major, info.minor, info.ino),
        what,
    }
}

/// The table's locks, in its order.
pub fn locks(table: &LockTable) -> impl Iterator<Item = Item> + Clone {
    table.locks.iter().map(|lock| {
        let (svid, mode, range) = (lock.svid, lock.mode, lock.range);
        let what = What::Lock { svid, mode, range };
        item(table, lock.host, lock.file, what)
    })
}

/// The table's waiters, in its order.
pub fn waiters(table: &LockTable) -> impl Iterator<Item = Item> + Clone {
    table.waiters.iter().map(|waiter| {
        let (svid, mode, range) = (waiter.svid, waiter.mode, waiter.range);
        let what = What::Waiter { svid, mode, range };
        item(table, waiter.host, waiter.file, what)
    })
}

/// The table's shares, in its order.
pub fn shares(table: &LockTable) -> impl Iterator<Item = Item> + Clone {
    table.shares.iter().map(|share| {
        let (owner, access, deny) = (share.owner.clone(), share.access, share.deny);
        let what = What::Share {
            owner,
            access,
            deny,
        };
        item(table, share.host, share.file, what)
    })
}

/// Items with their counts. The default hash function would take a sixth of the time of a release.
pub type Items = HashMap<Item, usize, RandomState>;

/// Everything in the table, with its count.
pub fn items(table: &LockTable) -> Items {
    let mut counted = Items::default();
    for item in locks(table).chain(waiters(table)).chain(shares(table)) {
        *counted.entry(item).or_insert(0) += 1;
    }
    counted
}

/// How many locks, waiters and shares there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub locks: usize,
    pub waiters: usize,
    pub shares: usize,
}

impl Counts {
    pub fn of(table: &LockTable) -> Self {
        Counts {
            locks: table.locks.len(),
            waiters: table.waiters.len(),
            shares: table.shares.len(),
        }
    }

    pub fn total(self) -> usize {
        self.locks + self.waiters + self.shares
    }

    pub fn is_none(self) -> bool {
        self == Counts::default()
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = |n| if n == 1 { "" } else { "s" };
        write!(f, "{} lock{}", self.locks, plural(self.locks))?;
        if self.waiters > 0 {
            write!(f, ", {} waiter{}", self.waiters, plural(self.waiters))?;
        }
        if self.shares > 0 {
            write!(f, ", {} share{}", self.shares, plural(self.shares))?;
        }
        Ok(())
    }
}

/// What happened to a VIP that the release must not change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// The same locks, waiters and shares as before.
    Untouched,
    /// Changed, and its own clients' requests account for it.
    ChangedByClients,
    /// lockd dropped locks that no client had unlocked, or locks came or went without a
    /// request.
    Disturbed,
}

/// A VIP that the release must not change, before and after.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Other {
    pub vip: IpAddr,
    pub netns: u32,
    /// Locks, waiters and shares before.
    pub before: usize,
    pub gone: usize,
    pub new: usize,
    /// Requests of its clients since then that change locks or waiters, and owners whose
    /// locks went because their client reported a reboot.
    pub requests: u64,
    /// Owners whose locks lockd dropped since then for any other reason.
    pub dropped: u64,
    pub fate: Fate,
}

/// Compares everything that does not belong to a released VIP of our namespace. `meanwhile`
/// is what the counters saw between the snapshots.
pub fn others(
    before: &LockTable,
    after: &LockTable,
    meanwhile: &PerVip,
    is_target: impl Fn(&Host) -> bool,
) -> Vec<Other> {
    let (before, after) = (items(before), items(after));
    let mut others: BTreeMap<(IpAddr, u32), Other> = BTreeMap::new();
    let hosts = before.keys().chain(after.keys()).map(|item| item.host);
    for host in hosts.filter(|host| !is_target(host)) {
        let (vip, netns) = (host.vip, host.netns);
        others.entry((vip, netns)).or_insert_with(|| {
            let counters = meanwhile.get(&vip).copied().unwrap_or_default();
            Other {
                vip,
                netns,
                before: 0,
                gone: 0,
                new: 0,
                requests: counters.client_changes() + counters.released.client_reboot,
                dropped: counters.released.total() - counters.released.client_reboot,
                fate: Fate::Untouched,
            }
        });
    }
    let mut tally = |item: &Item, add: &dyn Fn(&mut Other)| {
        if let Some(other) = others.get_mut(&(item.host.vip, item.host.netns))
            && !is_target(&item.host)
        {
            add(other);
        }
    };
    for (item, &count) in &before {
        let still = after.get(item).copied().unwrap_or(0);
        tally(item, &|other| {
            other.before += count;
            other.gone += count.saturating_sub(still);
        });
    }
    for (item, &count) in &after {
        let had = before.get(item).copied().unwrap_or(0);
        tally(item, &|other| other.new += count.saturating_sub(had));
    }
    // The counters know only the address. If another namespace has the released VIP too,
    // its releases are counted together with ours.
    let shared: Vec<IpAddr> = (before.keys().chain(after.keys()))
        .filter(|item| is_target(&item.host))
        .map(|item| item.host.vip)
        .collect();
    let mut others: Vec<Other> = others.into_values().collect();
    for other in &mut others {
        let dropped = other.dropped > 0 && !shared.contains(&other.vip);
        let changed = other.gone + other.new > 0;
        other.fate = if dropped || (changed && other.requests == 0) {
            Fate::Disturbed
        } else if changed {
            Fate::ChangedByClients
        } else {
            Fate::Untouched
        };
    }
    others
}

/// One snapshot of a VIP after its release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    pub left: Counts,
    /// Whether both lists of the snapshot agreed on the VIP's locks.
    pub exact: bool,
}

/// Why a release is not confirmed; empty if it is.
///
/// `looks` are the snapshots after the release, `meanwhile` is what the counters saw of the
/// VIP since the first of them.
pub fn blockers(looks: [Look; 2], meanwhile: &Counters) -> Vec<String> {
    let mut blockers = Vec::new();
    let [first, second] = looks;
    if !second.left.is_none() {
        blockers.push(format!("{} left after the release", second.left));
    } else if !first.left.is_none() {
        blockers.push(format!(
            "{} seen after the release, but not in the second snapshot: the VIP's locks still change",
            first.left
        ));
    }
    if !(first.exact && second.exact) {
        blockers.push(
            "the kernel's lists changed each time they were read: no two reads agreed".to_owned(),
        );
    }
    let granted = meanwhile.grants();
    if granted > 0 {
        blockers.push(format!(
            "locks were granted through the VIP after its release ({granted}): its clients still reach \
             this node; remove the address first, or drop its lock traffic"
        ));
    }
    blockers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::assemble::{Assembled, Records, assemble};
    use crate::observe::host::{NlmVersion, Transport};
    use nlmfo_common::Addr;
    use nlmfo_common::record::{FH_MAX, FileRecord, HostRecord, LockRecord, NAME_MAX, kind};
    use proptest::prelude::*;

    const NETNS: u32 = 1;

    fn is_target(host: &Host) -> bool {
        host.vip == IpAddr::from([10, 77, 0, 1]) && host.netns == NETNS
    }

    /// A table of locks given as (last byte of the VIP, namespace, first byte).
    fn table(locks: &[(u8, u32, u64)]) -> LockTable {
        let mut records = Records::default();
        records.files.push(FileRecord {
            kind: kind::FILE,
            dev: 1,
            nlm_file: 100,
            files: [101, 0],
            ino: 9,
            locks: 0,
            digest: 0,
            fh_len: 4,
            bucket: 0,
            fh: [7; FH_MAX],
        });
        for (i, &(vip, netns, start)) in locks.iter().enumerate() {
            let host = u64::from(vip) << 32 | u64::from(netns);
            records.hosts.insert(
                host,
                HostRecord {
                    kind: kind::HOST,
                    version: 4,
                    host,
                    vip: Addr::from_v4([10, 77, 0, vip]),
                    client: Addr::from_v4([10, 77, 0, 11]),
                    proto: 6,
                    netns,
                    expires: 0,
                    nsm_priv: [0; 16],
                    name: [0; NAME_MAX],
                    nsm_name: [0; NAME_MAX],
                },
            );
            records.locks.push(LockRecord {
                kind: kind::LOCK,
                mode: 1,
                fl: i as u64,
                owner: host,
                host,
                file: 101,
                start,
                end: start,
                svid: 1,
                pad: 0,
            });
        }
        let Assembled { table, orphans, .. } = assemble(records, None);
        assert_eq!(orphans, 0);
        table
    }

    fn meanwhile(vip: u8, change: impl FnOnce(&mut Counters)) -> PerVip {
        let mut counters = Counters::default();
        change(&mut counters);
        [(IpAddr::from([10, 77, 0, vip]), counters)].into()
    }

    #[test]
    fn a_vip_with_the_same_locks_is_untouched() {
        let before = table(&[(1, NETNS, 0), (2, NETNS, 0), (2, NETNS, 5)]);
        let after = table(&[(2, NETNS, 5), (2, NETNS, 0)]);
        let others = others(&before, &after, &PerVip::new(), is_target);
        assert_eq!(others.len(), 1);
        assert_eq!(others[0].fate, Fate::Untouched);
        assert_eq!(others[0].before, 2);
    }

    #[test]
    fn a_lock_that_goes_without_a_request_is_a_disturbance() {
        let before = table(&[(1, NETNS, 0), (2, NETNS, 0)]);
        let after = table(&[]);
        let others = others(&before, &after, &PerVip::new(), is_target);
        assert_eq!((others[0].gone, others[0].fate), (1, Fate::Disturbed));
    }

    #[test]
    fn a_clients_own_unlock_accounts_for_the_change() {
        let before = table(&[(1, NETNS, 0), (2, NETNS, 0)]);
        let unlocked = meanwhile(2, |counters| counters.unlocked = 1);
        let others = others(&before, &table(&[]), &unlocked, is_target);
        assert_eq!(others[0].fate, Fate::ChangedByClients);
    }

    #[test]
    fn what_lockd_dropped_by_itself_no_request_excuses() {
        let before = table(&[(1, NETNS, 0), (2, NETNS, 0)]);
        let dropped = meanwhile(2, |counters| {
            counters.unlocked = 1;
            counters.released.free_all = 1;
        });
        let others = others(&before, &table(&[]), &dropped, is_target);
        assert_eq!(others[0].fate, Fate::Disturbed);
    }

    #[test]
    fn a_clients_reboot_is_its_own_doing() {
        let before = table(&[(1, NETNS, 0), (2, NETNS, 0)]);
        let rebooted = meanwhile(2, |counters| counters.released.client_reboot = 1);
        let others = others(&before, &table(&[]), &rebooted, is_target);
        assert_eq!(others[0].fate, Fate::ChangedByClients);
    }

    #[test]
    fn the_same_address_in_another_namespace_is_another_vip() {
        let before = table(&[(1, NETNS, 0), (1, 2, 0)]);
        let released = meanwhile(1, |counters| counters.released.free_all = 1);
        let kept = others(&before, &table(&[(1, 2, 0)]), &released, is_target);
        assert_eq!((kept[0].netns, kept[0].fate), (2, Fate::Untouched));
        let lost = others(&before, &table(&[]), &released, is_target);
        assert_eq!(lost[0].fate, Fate::Disturbed);
    }

    #[test]
    fn the_key_of_an_item_is_what_the_kernel_calls_it() {
        let items = items(&table(&[(2, NETNS, 3)]));
        let (item, count) = items.iter().next().unwrap();
        assert_eq!(*count, 1);
        assert_eq!(item.host.version, NlmVersion::V4);
        assert_eq!(item.host.transport, Transport::Tcp);
        assert_eq!(item.file, (0, 1, 9));
    }

    const CLEAN: Look = Look {
        left: Counts {
            locks: 0,
            waiters: 0,
            shares: 0,
        },
        exact: true,
    };

    #[test]
    fn two_clean_looks_without_a_grant_leave_no_doubt() {
        assert!(blockers([CLEAN, CLEAN], &Counters::default()).is_empty());
    }

    #[test]
    fn each_kind_of_doubt_is_named() {
        let waiter = Look {
            left: Counts {
                waiters: 1,
                ..Counts::default()
            },
            ..CLEAN
        };
        let vague = Look {
            exact: false,
            ..CLEAN
        };
        let none = Counters::default();
        let granted = Counters {
            granted_later: 1,
            ..Counters::default()
        };
        for (looks, meanwhile, word) in [
            ([CLEAN, waiter], &none, "0 locks, 1 waiter left"),
            ([waiter, CLEAN], &none, "not in the second snapshot"),
            ([vague, CLEAN], &none, "no two reads agreed"),
            ([CLEAN, CLEAN], &granted, "after its release (1)"),
        ] {
            let blockers = blockers(looks, meanwhile);
            assert_eq!(blockers.len(), 1, "{blockers:?}");
            assert!(blockers[0].contains(word), "{blockers:?}");
        }
    }

    proptest! {
        /// Nothing that another VIP loses goes unnoticed.
        #[test]
        fn a_loss_is_never_untouched(
            locks in proptest::collection::vec((1u8..4, 1u32..3, 0u64..50), 1..30),
            lost in any::<prop::sample::Index>(),
        ) {
            let before = table(&locks);
            let mut rest = locks.clone();
            let (vip, netns, _) = rest.remove(lost.index(locks.len()));
            let others = others(&before, &table(&rest), &PerVip::new(), is_target);
            let hit = others.iter().find(|other| {
                other.vip == IpAddr::from([10, 77, 0, vip]) && other.netns == netns
            });
            match hit {
                Some(other) => prop_assert_eq!(other.fate, Fate::Disturbed),
                None => prop_assert!(vip == 1 && netns == NETNS),
            }
        }
    }
}
