//! Puts the table together from a snapshot's records.
//! Pure: records in, table out. [`assemble`] also decides whether the two walks of a snapshot
//! agree.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use nlmfo_common::record::{
    FileRecord, HostRecord, LockRecord, ShareRecord, WaiterRecord, lock_digest,
};

use super::host::{Host, NlmVersion, Transport};
use super::table::{
    FileId, FileInfo, HostId, HostInfo, Lock, LockTable, Mode, Range, Share, Waiter, distinct,
};
use crate::foreign::Name;

/// The records of one snapshot, as the programs wrote them.
#[derive(Debug, Default)]
pub struct Records {
    /// Records of the read of `/proc/locks`.
    pub locks: Vec<LockRecord>,
    /// Records of the walk of lockd's file table.
    pub files: Vec<FileRecord>,
    pub waiters: Vec<WaiterRecord>,
    pub shares: Vec<ShareRecord>,
    /// By address, for every host that the records above name.
    pub hosts: HashMap<u64, HostRecord>,
}

impl Records {
    /// Drops what was read of one bucket of the file table, to read it again.
    pub fn forget_bucket(&mut self, bucket: u32) {
        let forgotten: HashSet<u64> = (self.files.iter())
            .filter(|file| file.bucket == bucket)
            .map(|file| file.nlm_file)
            .collect();
        self.files.retain(|file| file.bucket != bucket);
        (self.waiters).retain(|waiter| !forgotten.contains(&waiter.nlm_file));
        (self.shares).retain(|share| !forgotten.contains(&share.nlm_file));
    }

    /// Addresses of the hosts that the records name, each once.
    pub fn host_addresses(&self) -> Vec<u64> {
        distinct(
            (self.locks.iter().map(|lock| lock.host))
                .chain(self.waiters.iter().map(|waiter| waiter.host))
                .chain(self.shares.iter().map(|share| share.host)),
        )
    }
}

/// A table, and the files on which the two walks saw different locks.
#[derive(Debug, Default)]
pub struct Assembled {
    pub table: LockTable,
    /// Files whose locks changed while they were read.
    pub unsettled: Vec<FileId>,
    /// Locks, waiters and shares whose file or host was gone before it could be read. With one
    /// VIP, only its own.
    pub orphans: usize,
}

impl Assembled {
    /// Whether both walks saw the same locks on every file.
    #[cfg(test)]
    pub fn agrees(&self) -> bool {
        self.unsettled.is_empty() && self.orphans == 0
    }
}

/// Puts the records together. What belongs to no known file or host is counted as an orphan; files
/// whose locks differ between the walks are named. The locks in the table are those of the read of
/// `/proc/locks`; the walk of the file table only checks them.
///
/// With `only`, the walk of the file table has summed up the locks of that VIP
/// alone, and only those decide whether a file is settled.
pub fn assemble(records: Records, only: Option<IpAddr>) -> Assembled {
    let mut assembly = Assembly {
        only,
        ..Assembly::default()
    };
    assembly.add_hosts(records.hosts.values());
    assembly.add_files(&records.files);
    assembly.add_locks(&records.locks);
    assembly.add_waiters(&records.waiters);
    assembly.add_shares(&records.shares);
    assembly.done()
}

/// What is put together so far, and where in the table the kernel's objects are, by their addresses.
#[derive(Default)]
struct Assembly {
    only: Option<IpAddr>,
    table: LockTable,
    orphans: usize,
    hosts: HashMap<u64, HostId>,
    by_nlm_file: HashMap<u64, FileId>,
    by_file: HashMap<u64, FileId>,
    /// For each file the number of locks and their digest that one walk saw, less those of the other.
    sums: Vec<(u64, u64)>,
}

impl Assembly {
    fn add_hosts<'a>(&mut self, records: impl Iterator<Item = &'a HostRecord>) {
        let mut listed: Vec<&HostRecord> = records.collect();
        listed.sort_by_key(|record| {
            (
                record.vip,
                record.client,
                record.version,
                record.proto,
                record.netns,
            )
        });
        for record in listed {
            if let Some(info) = host_info(record) {
                let id = HostId(self.table.hosts.len() as u32);
                self.hosts.insert(record.host, id);
                self.table.hosts.push(info);
            }
        }
    }

    fn add_files(&mut self, records: &[FileRecord]) {
        let mut inodes: HashMap<(u32, u64, &[u8]), FileId> = HashMap::new();
        let mut listed: Vec<&FileRecord> = records.iter().collect();
        listed.sort_by_key(|record| (record.dev, record.ino, record.fh));
        for record in listed {
            let fh = &record.fh[..record.fh.len().min(record.fh_len as usize)];
            let id = match inodes.entry((record.dev, record.ino, fh)) {
                Entry::Occupied(known) => *known.get(),
                Entry::Vacant(new) => {
                    let id = FileId(self.table.files.len() as u32);
                    self.table.files.push(FileInfo {
                        major: record.dev >> 20,
                        minor: record.dev & 0xf_ffff,
                        ino: record.ino,
                        fh: fh.to_vec(),
                    });
                    self.sums.push((0, 0));
                    *new.insert(id)
                }
            };
            self.by_nlm_file.insert(record.nlm_file, id);
            for file in record.files {
                self.by_file.insert(file, id);
            }
            let (locks, digest) = &mut self.sums[id.0 as usize];
            *locks += record.locks;
            *digest = digest.wrapping_add(record.digest);
        }
        self.by_file.remove(&0);
    }

    fn add_locks(&mut self, records: &[LockRecord]) {
        self.table.locks.reserve_exact(records.len());
        for record in records {
            let host = self.hosts.get(&record.host).copied();
            let (Some(host), Some(&file)) = (host, self.by_file.get(&record.file)) else {
                self.orphan(host);
                continue;
            };
            if self.matters(Some(host)) {
                let (locks, digest) = &mut self.sums[file.0 as usize];
                *locks = locks.wrapping_sub(1);
                *digest = digest.wrapping_sub(lock_digest(
                    record.fl,
                    record.owner,
                    record.start,
                    record.end,
                    record.mode,
                ));
            }
            self.table.locks.push(Lock {
                host,
                file,
                svid: record.svid,
                mode: Mode::from_kernel(record.mode),
                range: Range {
                    start: record.start,
                    end: record.end,
                },
            });
        }
    }

    fn add_waiters(&mut self, records: &[WaiterRecord]) {
        for record in records {
            if let Some((host, file)) = self.place(record.host, record.nlm_file) {
                self.table.waiters.push(Waiter {
                    host,
                    file,
                    svid: record.svid,
                    mode: Mode::from_kernel(record.mode),
                    range: Range {
                        start: record.start,
                        end: record.end,
                    },
                    granted: record.granted != 0,
                });
            }
        }
    }

    fn add_shares(&mut self, records: &[ShareRecord]) {
        for record in records {
            if let Some((host, file)) = self.place(record.host, record.nlm_file) {
                let owner = &record.owner[..record.owner.len().min(record.owner_len as usize)];
                self.table.shares.push(Share {
                    host,
                    file,
                    access: record.access,
                    deny: record.mode,
                    owner: owner.to_vec(),
                });
            }
        }
    }

    /// Where these are; an orphan has no place.
    fn place(&mut self, host: u64, nlm_file: u64) -> Option<(HostId, FileId)> {
        let host = self.hosts.get(&host).copied();
        let file = self.by_nlm_file.get(&nlm_file).copied();
        let place = host.zip(file);
        if place.is_none() {
            self.orphan(host);
        }
        place
    }

    fn orphan(&mut self, host: Option<HostId>) {
        self.orphans += usize::from(self.matters(host));
    }

    /// Whether the host is wanted. An unknown one counts as wanted.
    fn matters(&self, host: Option<HostId>) -> bool {
        match (self.only, host) {
            (Some(vip), Some(host)) => self.table.host(host).key.vip == vip,
            _ => true,
        }
    }

    fn done(self) -> Assembled {
        let mut table = self.table;
        // Hosts and files are sorted already, so indices sort by name.
        (table.locks).sort_unstable_by_key(|lock| (lock.host, lock.file, lock.range, lock.svid));
        (table.waiters)
            .sort_unstable_by_key(|waiter| (waiter.host, waiter.file, waiter.range, waiter.svid));
        table.shares.sort_by_key(|share| (share.host, share.file));
        let sums = self.sums.iter().enumerate();
        let unsettled = sums.filter(|(_, sum)| **sum != (0, 0));
        Assembled {
            table,
            unsettled: unsettled.map(|(id, _)| FileId(id as u32)).collect(),
            orphans: self.orphans,
        }
    }
}

/// A host from its record; none if its NLM version or transport is unknown.
pub(super) fn host_info(record: &HostRecord) -> Option<HostInfo> {
    Some(HostInfo {
        key: Host {
            vip: record.vip.ip(),
            client: record.client.ip(),
            version: NlmVersion::try_from(record.version).ok()?,
            transport: Transport::from_ip_protocol(record.proto as u16)?,
            netns: record.netns,
        },
        name: Name::from_c(&record.name),
        nsm_name: Name::from_c(&record.nsm_name),
        nsm_priv: record.nsm_priv,
        expires: record.expires,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nlmfo_common::Addr;
    use nlmfo_common::record::{FH_MAX, NAME_MAX, kind};
    use proptest::prelude::*;

    fn host(address: u64, vip: &str) -> HostRecord {
        let mut name = [0; NAME_MAX];
        name[..2].copy_from_slice(b"c1");
        HostRecord {
            kind: kind::HOST,
            version: 4,
            host: address,
            vip: Addr::from(vip.parse::<IpAddr>().unwrap()),
            client: Addr::from("10.77.0.11".parse::<IpAddr>().unwrap()),
            proto: 6,
            netns: 4_026_531_840,
            expires: 0,
            nsm_priv: [0; 16],
            name,
            nsm_name: [0; NAME_MAX],
        }
    }

    fn lock(fl: u64, host: u64, file: u64, start: u64) -> LockRecord {
        LockRecord {
            kind: kind::LOCK,
            mode: 1,
            fl,
            owner: host + 8,
            host,
            file,
            start,
            end: Range::EOF,
            svid: 7,
            pad: 0,
        }
    }

    /// A file as the table's walk sees it when it holds `locks`.
    fn file(nlm_file: u64, ino: u64, locks: &[LockRecord]) -> FileRecord {
        let ours = locks.iter().filter(|lock| lock.file == nlm_file + 1);
        FileRecord {
            kind: kind::FILE,
            dev: 8 << 20 | 1,
            nlm_file,
            files: [0, nlm_file + 1],
            ino,
            locks: ours.clone().count() as u64,
            digest: ours.fold(0, |sum: u64, lock| {
                sum.wrapping_add(lock_digest(
                    lock.fl, lock.owner, lock.start, lock.end, lock.mode,
                ))
            }),
            fh_len: 28,
            bucket: 0,
            fh: [ino as u8; FH_MAX],
        }
    }

    fn records(locks: Vec<LockRecord>) -> Records {
        Records {
            files: vec![file(100, 5, &locks), file(200, 6, &locks)],
            locks,
            hosts: [(1, host(1, "10.77.0.1")), (2, host(2, "fd77::1"))].into(),
            ..Records::default()
        }
    }

    #[test]
    fn two_walks_that_saw_the_same_agree() {
        let locks = vec![
            lock(10, 2, 101, 0),
            lock(11, 1, 201, 4),
            lock(12, 1, 101, 9),
        ];
        let assembled = assemble(records(locks), None);
        assert!(assembled.agrees());
        let table = assembled.table;
        let seen: Vec<(String, u64, u64)> = (table.locks.iter())
            .map(|lock| {
                let vip = table.host(lock.host).key.vip.to_string();
                (vip, table.file(lock.file).ino, lock.range.start)
            })
            .collect();
        assert_eq!(
            seen,
            [
                ("10.77.0.1".to_string(), 5, 9),
                ("10.77.0.1".to_string(), 6, 4),
                ("fd77::1".to_string(), 5, 0),
            ]
        );
        assert_eq!(table.files[0].major, 8);
        assert_eq!(table.files[0].minor, 1);
        assert_eq!(table.files[0].fh, [5; 28]);
        assert_eq!(table.hosts[0].name, "c1");
    }

    #[test]
    fn a_lock_that_one_walk_missed_unsettles_its_file_alone() {
        let mut records = records(vec![lock(10, 1, 101, 0), lock(11, 1, 201, 4)]);
        records.locks.pop();
        let assembled = assemble(records, None);
        let inos: Vec<u64> = (assembled.unsettled.iter())
            .map(|id| assembled.table.file(*id).ino)
            .collect();
        assert_eq!(inos, [6]);
    }

    #[test]
    fn a_lock_of_an_unknown_file_or_host_is_an_orphan() {
        let mut records = records(vec![lock(10, 1, 101, 0)]);
        records.locks.push(lock(11, 1, 999, 0));
        records.locks.push(lock(12, 99, 101, 0));
        let assembled = assemble(records, None);
        assert_eq!(assembled.orphans, 2);
        assert!(!assembled.agrees());
    }

    #[test]
    fn a_host_of_an_unknown_transport_is_not_guessed_at() {
        let mut records = records(vec![lock(10, 1, 101, 0)]);
        records.hosts.get_mut(&1).unwrap().proto = 132;
        assert_eq!(assemble(records, None).orphans, 1);
    }

    proptest! {
        /// Whatever differs between the walks, the snapshot is not accepted.
        #[test]
        fn any_difference_is_noticed(
            starts in proptest::collection::vec((0u64..1000, 1u64..3, 0u64..2), 1..40),
            victim in any::<prop::sample::Index>(),
            change in 0..4,
        ) {
            let locks: Vec<LockRecord> = (starts.iter().enumerate())
                .map(|(i, (start, host, file))| lock(1000 + i as u64, *host, 101 + 100 * file, *start))
                .collect();
            let mut records = records(locks);
            let i = victim.index(records.locks.len());
            match change {
                0 => { records.locks.remove(i); }
                1 => { let twice = records.locks[i]; records.locks.push(twice); }
                2 => records.locks[i].start += 1,
                _ => records.locks[i].fl += 100_000,
            }
            prop_assert!(!assemble(records, None).agrees());
        }
    }
}
