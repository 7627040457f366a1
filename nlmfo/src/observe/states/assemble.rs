//! Puts the table together from what the probes wrote. Pure: records in, table out.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use nlmfo_common::Addr;
use nlmfo_common::state::{ClientRecord, ConnectionRecord, OWNER_MAX, RangeRecord, StateRecord};

use super::info::Info;
use super::{Access, Kind, Nfs4Client, Standing, State, StateTable, Waiter4};
use crate::foreign::Name;
use crate::observe::table::{FileInfo, Mode, Range};

/// Bit `NFSD4_CLIENT_RECLAIM_COMPLETE` of `nfs4_client.cl_flags` (fs/nfsd/state.h, 6.1 to 7.3).
const RECLAIM_COMPLETE: u64 = 1 << 3;

/// A client and its states as they were read once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadClient {
    pub number: u64,
    pub record: ClientRecord,
    /// Sorted. Of 4.0, TCP connections from its address, where its name does not tell its VIP.
    pub connections: Vec<ConnectionRecord>,
    pub states: Vec<StateRecord>,
}

impl ReadClient {
    /// Whether an NFSv4.0 client may use another address than the one through which it introduced
    /// itself last. A Linux client with the mount option `migration` introduces itself through each
    /// address that it mounts, with one name, and goes on using its first connection. Without the
    /// option it has a name for each address, which ends with it.
    pub fn may_use_others(&self) -> bool {
        let record = &self.record;
        if record.minor > 0 {
            return false;
        }
        // A name that is cut does not tell.
        let name = match record.name_len as usize {
            length if length > OWNER_MAX => return true,
            length => String::from_utf8_lossy(&record.name[..length]),
        };
        // Old clients have the transport behind it.
        let last = name.rsplit('/').next().unwrap_or_default();
        let address = last.split(' ').next().unwrap_or_default();
        address.parse::<IpAddr>().ok() != Some(record.vip.ip())
    }

    fn vips(&self) -> (Vec<IpAddr>, bool) {
        const NONE: Addr = Addr([0; 16]);
        let mut seen: Vec<Addr> = self.connections.iter().map(|conn| conn.vip).collect();
        let lone = match self.record.minor {
            0 => self.may_use_others() && seen.is_empty(),
            _ => seen.is_empty(),
        };
        if self.record.minor == 0 {
            seen.push(self.record.vip);
        }
        let unknown = lone || seen.contains(&NONE);
        let mut vips: Vec<IpAddr> = (seen.into_iter().filter(|vip| *vip != NONE))
            .map(Addr::ip)
            .collect();
        vips.sort_unstable();
        vips.dedup();
        (vips, unknown)
    }

    fn peers(&self) -> Vec<IpAddr> {
        let peers = self.connections.iter().map(|conn| conn.peer);
        let mut peers: Vec<IpAddr> = (peers.filter(|peer| *peer != Addr([0; 16])))
            .map(Addr::ip)
            .collect();
        peers.sort_unstable();
        peers.dedup();
        peers
    }

    /// Whether it may hold something through the VIP; true if no VIP is given.
    fn matters(&self, only: Option<IpAddr>) -> bool {
        let (vips, unknown) = self.vips();
        only.is_none_or(|vip| unknown || vips.contains(&vip))
    }
}

/// Whether nothing that matters changed between two reads. This also compares generations: a LOCK or
/// LOCKU between the reads raises that of its state.
pub fn is_same(first: &[ReadClient], second: &[ReadClient], only: Option<IpAddr>) -> bool {
    let matters = |client: &&ReadClient| client.matters(only);
    (first.iter().filter(matters)).eq(second.iter().filter(matters))
}

/// The table, and whether locks and states agree on every client that matters: each
/// range has its state, and each delegation its lease. `apart` tells that this kernel
/// keeps a state's status apart from its type.
pub fn assemble(
    clients: &[ReadClient],
    infos: &HashMap<u64, Info>,
    ranges: &[RangeRecord],
    only: Option<IpAddr>,
    apart: bool,
) -> (StateTable, bool) {
    let mut table = StateTable::default();
    let mut locks: HashMap<(u64, u32, u64), Vec<(Mode, Range)>> = HashMap::new();
    let mut leases: HashSet<u64> = HashSet::new();
    let (waiting, ranges): (Vec<&RangeRecord>, Vec<&RangeRecord>) =
        ranges.iter().partition(|range| range.waits != 0);
    for range in &ranges {
        match range.lease {
            0 => {
                let covered = Range {
                    start: range.start,
                    end: range.end,
                };
                let held = locks
                    .entry((range.holder, range.dev, range.ino))
                    .or_default();
                held.push((Mode::from_kernel(range.mode), covered));
            }
            _ => drop(leases.insert(range.holder)),
        }
    }
    let mut agree = true;
    for client in clients {
        let place = table.clients.len();
        let matters = client.matters(only);
        table.clients.push(nfs4_client(client, infos));
        for record in &client.states {
            let (kind, standing) = kind(record, apart);
            let mut ranges = match kind {
                Kind::Lock => {
                    (locks.remove(&(record.owner, record.dev, record.ino))).unwrap_or_default()
                }
                _ => Vec::new(),
            };
            ranges.sort_unstable_by_key(|(_, range)| *range);
            let has_lease = leases.remove(&record.stid);
            if kind == Kind::Delegation && standing == Standing::Held && !has_lease {
                agree &= !matters;
            }
            table
                .states
                .push(state(place, record, kind, standing, ranges));
        }
    }
    // The remaining ranges belong to no state that was read.
    let known: HashMap<u64, &ReadClient> = (clients.iter())
        .map(|client| (client.record.client, client))
        .collect();
    let left = ranges.iter().filter(|range| match range.lease {
        0 => locks.contains_key(&(range.holder, range.dev, range.ino)),
        _ => leases.contains(&range.holder),
    });
    for range in left {
        agree &= known
            .get(&range.client)
            .is_some_and(|client| !client.matters(only));
    }
    table.waiters = waiters(&waiting, &table, clients);
    (table, agree)
}

/// Those whose client was read, by client, file and range.
fn waiters(records: &[&RangeRecord], table: &StateTable, clients: &[ReadClient]) -> Vec<Waiter4> {
    let places: HashMap<u64, usize> = (clients.iter().enumerate())
        .map(|(place, client)| (client.record.client, place))
        .collect();
    let files: HashMap<(u32, u32, u64), &FileInfo> = (table.states.iter())
        .filter_map(|state| state.file.as_ref())
        .map(|file| ((file.major, file.minor, file.ino), file))
        .collect();
    let owners: HashMap<u64, &StateRecord> = (clients.iter())
        .flat_map(|client| &client.states)
        .map(|state| (state.owner, state))
        .collect();
    let waiter = |record: &&RangeRecord| {
        let (major, minor) = (record.dev >> 20, record.dev & 0xf_ffff);
        let file = files.get(&(major, minor, record.ino));
        Some(Waiter4 {
            client: *places.get(&record.client)?,
            file: file.map_or_else(
                || FileInfo {
                    major,
                    minor,
                    ino: record.ino,
                    fh: Vec::new(),
                },
                |file| (*file).clone(),
            ),
            mode: Mode::from_kernel(record.mode),
            range: Range {
                start: record.start,
                end: record.end,
            },
            owner: owners
                .get(&record.holder)
                .map(|state| owner(state).to_vec())
                .unwrap_or_default(),
            owner_at: record.holder,
        })
    };
    // A run that ended among them was repeated.
    let mut seen = HashSet::new();
    let mut all: Vec<Waiter4> = (records.iter())
        .filter(|record| seen.insert(record.fl))
        .filter_map(waiter)
        .collect();
    all.sort_by_key(|waiter| {
        (
            waiter.client,
            waiter.file.ino,
            waiter.range,
            waiter.owner_at,
        )
    });
    all
}

fn nfs4_client(client: &ReadClient, infos: &HashMap<u64, Info>) -> Nfs4Client {
    let (vips, vip_unknown) = client.vips();
    let record = &client.record;
    Nfs4Client {
        number: client.number,
        id: record.id,
        minor: record.minor,
        name: match record.name_len as usize {
            length if length > OWNER_MAX => Name::cut(&record.name),
            length => Name::from(&record.name[..length]),
        },
        address: record.address.ip(),
        peers: client.peers(),
        vips,
        vip_unknown,
        connections: (record.minor > 0).then_some(client.connections.len()),
        has_reclaimed: record.flags & RECLAIM_COMPLETE != 0,
        info: infos.get(&client.number).cloned().unwrap_or_default(),
    }
}

fn state(
    client: usize,
    record: &StateRecord,
    kind: Kind,
    standing: Standing,
    ranges: Vec<(Mode, Range)>,
) -> State {
    let fh = &record.fh[..record.fh.len().min(record.fh_len as usize)];
    State {
        client,
        kind,
        standing,
        access: match kind {
            Kind::Delegation => delegated(record.delegation),
            _ => access(record.access),
        },
        deny: access(record.deny),
        file: (record.file != 0).then(|| FileInfo {
            major: record.dev >> 20,
            minor: record.dev & 0xf_ffff,
            ino: record.ino,
            fh: fh.to_vec(),
        }),
        owner: owner(record).to_vec(),
        ranges,
        id: record.id,
    }
}

fn owner(record: &StateRecord) -> &[u8] {
    &record.owner_name[..OWNER_MAX.min(record.owner_len as usize)]
}

/// Of `st_access_bmap` and `st_deny_bmap`: bit n is set for `OPEN4_SHARE_ACCESS_*` n.
fn access(bitmap: u32) -> Access {
    Access {
        read: bitmap & (1 << 1 | 1 << 3) != 0,
        write: bitmap & (1 << 2 | 1 << 3) != 0,
    }
}

/// Of `dl_type`, an `open_delegation_type4`: 1 read, 2 write, 4 and 5 the same with
/// delegated timestamps.
fn delegated(kind: u32) -> Access {
    Access {
        read: true,
        write: matches!(kind, 2 | 5),
    }
}

/// By fs/nfsd/state.h: `SC_TYPE_*` and `SC_STATUS_*` from 6.9 on (`apart`), before
/// `NFS4_*_STID`, which has both in one.
fn kind(record: &StateRecord, apart: bool) -> (Kind, Standing) {
    const CLOSED: u32 = 1;
    const REVOKED: u32 = 2;
    const ADMIN_REVOKED: u32 = 4;
    let kind = match (apart, record.class) {
        (_, 1) => Kind::Open,
        (_, 2) => Kind::Lock,
        (_, 4) => Kind::Delegation,
        (true, 8) | (false, 64) => Kind::Layout,
        (false, 8) => return (Kind::Open, Standing::Closed),
        (false, 16) => return (Kind::Delegation, Standing::Revoked),
        (false, 32) => return (Kind::Delegation, Standing::Closed),
        _ => Kind::Other,
    };
    let standing = match record.status {
        status if status & ADMIN_REVOKED != 0 => Standing::AdminRevoked,
        status if status & REVOKED != 0 => Standing::Revoked,
        status if status & CLOSED != 0 => Standing::Closed,
        _ => Standing::Held,
    };
    (kind, standing)
}

#[cfg(test)]
mod tests;
