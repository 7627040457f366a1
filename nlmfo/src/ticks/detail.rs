//! A VIP's clients, locks, waiters and shares as lines, up to a limit; the rest is only counted.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::states::ClientLine4;
use crate::foreign;
use crate::observe::host::{Host, NlmVersion, Transport};
use crate::observe::states::Waiter4;
use crate::observe::table::{FileId, HostId, Lock, LockTable, Mode, Range, Waiter, conflict};

/// Maximum number of lines of one VIP.
pub(super) const PER_VIP: usize = 1_000;

/// Maximum number of lines of all VIPs.
pub(super) const IN_ALL: usize = 5_000;

/// What a VIP's pane shows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detail {
    pub vip: IpAddr,
    pub clients: Vec<ClientLine>,
    /// In the clients' order.
    pub locks: Vec<HeldLine>,
    pub waiters: Vec<WaitLine>,
    pub shares: Vec<ShareLine>,
    /// NFSv4 clients, each with what it holds.
    #[serde(default)]
    pub nfs4: Vec<ClientLine4>,
    /// Number of locks, waiters, shares and NFSv4 states beyond the limit.
    pub more: u64,
}

/// A client through one NLM version and transport.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientLine {
    pub client: IpAddr,
    /// The client's own name.
    #[serde(deserialize_with = "foreign::text")]
    pub name: String,
    pub version: NlmVersion,
    pub transport: Transport,
    /// Everything that it holds, including what is beyond the limit.
    pub held: u64,
}

/// A held lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldLine {
    /// Place in [`Detail::clients`].
    pub client: usize,
    pub svid: u32,
    pub mode: Mode,
    pub range: Range,
    #[serde(deserialize_with = "foreign::text")]
    pub file: String,
    pub since: Option<Since>,
    /// Waiters, through any VIP, that cannot be granted while it is held.
    pub behind: u64,
}

/// When a lock was first seen, on the clock of a tick's `elapsed_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Since {
    pub ms: u64,
    /// It was held at the first snapshot and may be older.
    pub or_before: bool,
}

/// A blocked request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitLine {
    pub client: usize,
    pub svid: u32,
    pub mode: Mode,
    pub range: Range,
    #[serde(deserialize_with = "foreign::text")]
    pub file: String,
    /// The lock is granted, and lockd is notifying the client.
    pub granted: bool,
    /// A client, through any VIP, that it waits for; none if a local process holds the lock.
    pub holder: Option<IpAddr>,
}

/// A DOS share reservation: 0 none, 1 read, 2 write, 3 both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShareLine {
    pub client: usize,
    pub access: u32,
    pub deny: u32,
    #[serde(deserialize_with = "foreign::text")]
    pub file: String,
}

/// How many a VIP has of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    pub held: u64,
    pub waiters: u64,
    pub shares: u64,
    pub clients: u64,
}

/// The gauges of every VIP in the table.
pub fn gauges(table: &LockTable) -> BTreeMap<IpAddr, Gauges> {
    // Counted by host first, since there are few hosts.
    let mut by_host = vec![Gauges::default(); table.hosts.len()];
    for lock in &table.locks {
        by_host[lock.host.index()].held += 1;
    }
    for waiter in &table.waiters {
        by_host[waiter.host.index()].waiters += 1;
    }
    for share in &table.shares {
        by_host[share.host.index()].shares += 1;
    }
    let mut all: BTreeMap<IpAddr, Gauges> = BTreeMap::new();
    let mut clients: BTreeMap<IpAddr, Vec<IpAddr>> = BTreeMap::new();
    for (info, counts) in table.hosts.iter().zip(&by_host) {
        if *counts != Gauges::default() {
            let Host { vip, client, .. } = info.key;
            let sum = all.entry(vip).or_default();
            sum.held += counts.held;
            sum.waiters += counts.waiters;
            sum.shares += counts.shares;
            clients.entry(vip).or_default().push(client);
        }
    }
    for (vip, mut clients) in clients {
        clients.sort_unstable();
        clients.dedup();
        all.entry(vip).or_default().clients = clients.len() as u64;
    }
    all
}

/// The details of all VIPs. `first` has room before the others. `waiters4` are NFSv4 clients'
/// requests, `file` names a file, `since` tells when a lock was first seen, and `holder` whom a
/// request waits for.
pub fn details(
    table: &LockTable,
    waiters4: &[Waiter4],
    first: Option<IpAddr>,
    mut file: impl FnMut(FileId) -> String,
    since: impl Fn(&Lock) -> Option<Since>,
    holder: impl Fn(&Waiter) -> Option<IpAddr>,
) -> Vec<Detail> {
    let gauges = gauges(table);
    let queues = Queues::of(table, waiters4);
    let mut room = room(&gauges, first);
    let mut details: BTreeMap<IpAddr, Detail> = BTreeMap::new();
    let mut places: Vec<Option<usize>> = vec![None; table.hosts.len()];
    let mut held = vec![0; table.hosts.len()];
    for lock in &table.locks {
        held[lock.host.index()] += 1;
    }
    // The line's detail and its client's place in it, or none if there is no room.
    let mut place = |host: HostId, details: &mut BTreeMap<IpAddr, Detail>| {
        let info = table.host(host);
        let vip = info.key.vip;
        let detail = details.entry(vip).or_insert_with(|| Detail::empty(vip));
        let left = room.get_mut(&vip).filter(|left| **left > 0);
        let Some(left) = left else {
            detail.more += 1;
            return None;
        };
        *left -= 1;
        let client = *places[host.index()].get_or_insert_with(|| {
            detail.clients.push(ClientLine {
                client: info.key.client,
                name: info.name.to_string(),
                version: info.key.version,
                transport: info.key.transport,
                held: held[host.index()],
            });
            detail.clients.len() - 1
        });
        Some((vip, client))
    };
    for waiter in &table.waiters {
        if let Some((vip, client)) = place(waiter.host, &mut details) {
            let line = WaitLine {
                client,
                svid: waiter.svid,
                mode: waiter.mode,
                range: waiter.range,
                file: file(waiter.file),
                granted: waiter.granted,
                holder: holder(waiter),
            };
            of(&mut details, vip).waiters.push(line);
        }
    }
    for share in &table.shares {
        if let Some((vip, client)) = place(share.host, &mut details) {
            let line = ShareLine {
                client,
                access: share.access,
                deny: share.deny,
                file: file(share.file),
            };
            of(&mut details, vip).shares.push(line);
        }
    }
    for lock in &table.locks {
        if let Some((vip, client)) = place(lock.host, &mut details) {
            let line = HeldLine {
                client,
                svid: lock.svid,
                mode: lock.mode,
                range: lock.range,
                file: file(lock.file),
                since: since(lock),
                behind: queues.behind(lock),
            };
            of(&mut details, vip).locks.push(line);
        }
    }
    for detail in details.values_mut() {
        detail.locks.sort_by_key(|line| line.client);
    }
    details.into_values().collect()
}

fn of(details: &mut BTreeMap<IpAddr, Detail>, vip: IpAddr) -> &mut Detail {
    details
        .get_mut(&vip)
        .expect("it was made with its first line")
}

impl Detail {
    pub fn is_empty(&self) -> bool {
        self.clients.is_empty() && self.nfs4.is_empty() && self.more == 0
    }

    /// Nothing is held through the VIP.
    pub fn empty(vip: IpAddr) -> Self {
        Detail {
            vip,
            clients: Vec::new(),
            locks: Vec::new(),
            waiters: Vec::new(),
            shares: Vec::new(),
            nfs4: Vec::new(),
            more: 0,
        }
    }
}

/// How many lines each VIP may have.
fn room(gauges: &BTreeMap<IpAddr, Gauges>, first: Option<IpAddr>) -> BTreeMap<IpAddr, usize> {
    let mut left = IN_ALL;
    let others = gauges.keys().copied().filter(|vip| Some(*vip) != first);
    let mut room = BTreeMap::new();
    for vip in first.into_iter().chain(others) {
        let Some(gauges) = gauges.get(&vip) else {
            continue;
        };
        let wanted = (gauges.held + gauges.waiters + gauges.shares) as usize;
        let given = wanted.min(PER_VIP).min(left);
        left -= given;
        room.insert(vip, given);
    }
    room
}

/// The requests that wait, by file.
struct Queues<'a> {
    nfs3: HashMap<FileId, Vec<&'a Waiter>>,
    nfs4: HashMap<FileId, Vec<&'a Waiter4>>,
}

impl<'a> Queues<'a> {
    fn of(table: &'a LockTable, waiters4: &'a [Waiter4]) -> Self {
        let mut nfs3: HashMap<FileId, Vec<&Waiter>> = HashMap::new();
        for waiter in table.waiters.iter().filter(|waiter| !waiter.granted) {
            nfs3.entry(waiter.file).or_default().push(waiter);
        }
        let mut by_inode: HashMap<_, Vec<&Waiter4>> = HashMap::new();
        for waiter in waiters4 {
            by_inode
                .entry(waiter.file.inode())
                .or_default()
                .push(waiter);
        }
        let mut nfs4 = HashMap::new();
        if !by_inode.is_empty() {
            for lock in &table.locks {
                if let Some(waiters) = by_inode.get(&table.file(lock.file).inode()) {
                    nfs4.entry(lock.file).or_insert_with(|| waiters.clone());
                }
            }
        }
        Queues { nfs3, nfs4 }
    }

    fn behind(&self, lock: &Lock) -> u64 {
        let held = (lock.mode, lock.range);
        let nfs3 = self.nfs3.get(&lock.file).into_iter().flatten();
        let nfs3 = nfs3.filter(|waiter| {
            let same_owner = (lock.host, lock.svid) == (waiter.host, waiter.svid);
            !same_owner && conflict(held, (waiter.mode, waiter.range))
        });
        let nfs4 = self.nfs4.get(&lock.file).into_iter().flatten();
        let nfs4 = nfs4.filter(|waiter| conflict(held, (waiter.mode, waiter.range)));
        (nfs3.count() + nfs4.count()) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::behind::{Holder, Holders};
    use crate::observe::states::StateTable;
    use crate::ticks::tables;

    fn all(table: &LockTable, first: Option<IpAddr>) -> Vec<Detail> {
        let states = StateTable::default();
        let holders = Holders::of_awaited(table, &states);
        details(
            table,
            &states.waiters,
            first,
            |file| format!("/srv/{}", file.index()),
            |_| None,
            |waiter| holders.of(table, waiter).iter().find_map(Holder::client),
        )
    }

    #[test]
    fn gauges_count_clients_once() {
        let table = tables::two_clients_one_file();
        let vip = table.hosts[0].key.vip;
        assert_eq!(
            gauges(&table)[&vip],
            Gauges {
                held: 2,
                waiters: 1,
                shares: 1,
                clients: 2
            }
        );
    }

    #[test]
    fn it_is_said_who_waits_for_whom() {
        let table = tables::two_clients_one_file();
        let [detail] = &all(&table, None)[..] else {
            panic!("one VIP");
        };
        let [first, second] = &detail.locks[..] else {
            panic!("{detail:?}");
        };
        assert_eq!((first.behind, second.behind), (1, 0));
        assert_eq!(detail.waiters[0].holder, Some(table.hosts[0].key.client));
        // An NFSv4 client that waits for the same.
        let waiter = &table.waiters[0];
        let waiter4 = Waiter4 {
            client: 0,
            file: table.file(waiter.file).clone(),
            mode: waiter.mode,
            range: waiter.range,
            owner: Vec::new(),
            owner_at: 1,
        };
        let queues = Queues::of(&table, std::slice::from_ref(&waiter4));
        assert_eq!(queues.behind(&table.locks[0]), 2);
        let holder = &detail.clients[first.client];
        assert_eq!(holder.client, table.hosts[0].key.client);
        assert_eq!(detail.more, 0);
    }

    #[test]
    fn what_found_no_room_is_counted_and_the_open_vip_goes_first() {
        let table = tables::many(7, 900);
        let last = table.hosts.last().unwrap().key.vip;
        let lines = |detail: &Detail| detail.locks.len();
        let details = all(&table, Some(last));
        assert_eq!(details.iter().map(lines).sum::<usize>(), IN_ALL);
        let more: u64 = details.iter().map(|detail| detail.more).sum();
        assert_eq!(more, 7 * 900 - IN_ALL as u64);
        assert_eq!(lines(details.last().unwrap()), 900);
        let one = all(&tables::many(1, 3_000), None);
        assert_eq!((lines(&one[0]), one[0].more), (PER_VIP, 2_000));
        assert_eq!(one[0].clients[0].held, 3_000);
    }
}
