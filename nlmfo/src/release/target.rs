//! What a snapshot shows of one VIP, in the form that the release methods need.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::foreign::Name;
use crate::observe::host::{Host, NlmVersion};
use crate::observe::table::{self, HostId, LockTable, Mode};
use crate::rpc::nlm::Range;
use crate::rpc::nsm::Cookie;

/// One lockd host of which something is to be released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The host, as lockd identifies it.
    pub host: Host,
    /// The client's own name. In calls it appears only in lockd's log.
    pub caller: Name,
    /// What statd knows the client by, if it is monitored.
    pub monitored: Option<Monitored>,
    /// What the host waits for.
    pub waiting: Vec<Request>,
    /// What is released by calls of its own: everything of a host of NLM v1, which has no FREE_ALL, and
    /// what is released without the rest of its host.
    pub held: Vec<Request>,
}

/// The identity of a client between lockd and statd.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitored {
    /// The name that statd monitors.
    pub name: Name,
    /// What lockd gave statd with `SM_MON`, and expects back from it.
    pub cookie: Cookie,
}

/// A lock, or a request for one, as its owner would name it in a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// The NFS file handle, as the client sent it.
    pub file_handle: Vec<u8>,
    /// What tells the owners of one host apart.
    pub svid: u32,
    /// A lock, a waiting request or a share.
    pub kind: RequestKind,
}

/// What a request of a client is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// What this owner holds of this range of the file.
    Held {
        /// The bytes to unlock.
        range: Range,
    },
    /// A request in lockd's queue.
    Waiting {
        /// The bytes that it asks for, exactly.
        range: Range,
        /// It asks for a write lock.
        exclusive: bool,
    },
    /// A DOS share.
    Share {
        /// The owner's name as its client sent it.
        owner: Vec<u8>,
        /// What the holder does: 0 nothing, 1 read, 2 write, 3 both.
        access: u32,
        /// What others may not do: the same numbers.
        deny: u32,
    },
}

/// The hosts of `vip` in the network namespace `netns` that hold, wait for or have
/// reserved anything.
pub fn targets(table: &LockTable, vip: IpAddr, netns: u32) -> Vec<Target> {
    targets_with(table, vip, netns, |id| match table.host(id).key.version {
        NlmVersion::V1 => held(table, id),
        NlmVersion::V3 | NlmVersion::V4 => Vec::new(),
    })
}

/// [`targets`], with a request for each lock and share in the table.
pub fn targets_one_by_one(table: &LockTable, vip: IpAddr, netns: u32) -> Vec<Target> {
    targets_with(table, vip, netns, |id| each(table, id))
}

fn targets_with(
    table: &LockTable,
    vip: IpAddr,
    netns: u32,
    held: impl Fn(HostId) -> Vec<Request>,
) -> Vec<Target> {
    let active = table.active_hosts().into_iter();
    active
        .filter(|id| {
            let key = table.host(*id).key;
            key.vip == vip && key.netns == netns
        })
        .map(|id| target(table, id, held(id)))
        .collect()
}

fn target(table: &LockTable, id: HostId, held: Vec<Request>) -> Target {
    let info = table.host(id);
    let is_monitored = info.nsm_priv != Cookie::default();
    Target {
        host: info.key,
        caller: info.name.clone(),
        monitored: is_monitored.then(|| Monitored {
            name: info.nsm_name.clone(),
            cookie: info.nsm_priv,
        }),
        waiting: waiting(table, id),
        held,
    }
}

fn waiting(table: &LockTable, host: HostId) -> Vec<Request> {
    let waiting = table.waiters.iter().filter(|waiter| waiter.host == host);
    waiting
        .map(|waiter| Request {
            file_handle: table.file(waiter.file).fh.clone(),
            svid: waiter.svid,
            kind: RequestKind::Waiting {
                range: nlm_range(waiter.range),
                exclusive: waiter.mode == Mode::Write,
            },
        })
        .collect()
}

fn held(table: &LockTable, host: HostId) -> Vec<Request> {
    let held = table.locks.iter().filter(|lock| lock.host == host);
    let owners: BTreeSet<_> = held.map(|lock| (lock.file, lock.svid)).collect();
    (owners.into_iter())
        .map(|(file, svid)| Request {
            file_handle: table.file(file).fh.clone(),
            svid,
            kind: RequestKind::Held {
                range: Range::WHOLE_FILE,
            },
        })
        .collect()
}

fn each(table: &LockTable, host: HostId) -> Vec<Request> {
    let locks = table.locks.iter().filter(|lock| lock.host == host);
    let locks = locks.map(|lock| Request {
        file_handle: table.file(lock.file).fh.clone(),
        svid: lock.svid,
        kind: RequestKind::Held {
            range: nlm_range(lock.range),
        },
    });
    let shares = table.shares.iter().filter(|share| share.host == host);
    let shares = shares.map(|share| Request {
        file_handle: table.file(share.file).fh.clone(),
        svid: 0,
        kind: RequestKind::Share {
            owner: share.owner.clone(),
            access: share.access,
            deny: share.deny,
        },
    });
    locks.chain(shares).collect()
}

/// NLM names a length where the kernel names the last byte, and 0 for "to the end".
fn nlm_range(range: table::Range) -> Range {
    let length = match range.end {
        table::Range::EOF => 0,
        end => end - range.start + 1,
    };
    Range {
        offset: range.start,
        length,
    }
}

/// Whether `vip` is a server address in a network namespace other than `netns`.
pub fn is_served_elsewhere(table: &LockTable, vip: IpAddr, netns: u32) -> bool {
    table
        .hosts
        .iter()
        .any(|host| host.key.vip == vip && host.key.netns != netns)
}

/// Clients in `netns` that hold, wait for or have reserved something through another
/// address than `vip`.
pub fn clients_of_others(table: &LockTable, vip: IpAddr, netns: u32) -> BTreeSet<IpAddr> {
    let active = table
        .active_hosts()
        .into_iter()
        .map(|id| table.host(id).key);
    active
        .filter(|key| key.netns == netns && key.vip != vip)
        .map(|key| key.client)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use nlmfo_common::Addr;
    use nlmfo_common::record::{
        FH_MAX, FileRecord, HostRecord, LockRecord, NAME_MAX, WaiterRecord, kind,
    };

    use super::*;
    use crate::observe::assemble::{Records, assemble};

    const NETNS: u32 = 4_026_531_840;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn host(id: u64, vip: &str, client: &str, version: u32, netns: u32) -> HostRecord {
        let mut name = [0; NAME_MAX];
        name[..2].copy_from_slice(b"c1");
        HostRecord {
            kind: kind::HOST,
            version,
            host: id,
            vip: Addr::from(address(vip)),
            client: Addr::from(address(client)),
            proto: 6,
            netns,
            expires: 0,
            nsm_priv: [if version == 4 { 9 } else { 0 }; 16],
            name,
            nsm_name: name,
        }
    }

    fn lock(host: u64, svid: u32, start: u64, end: u64) -> LockRecord {
        LockRecord {
            kind: kind::LOCK,
            mode: 1,
            fl: start,
            owner: host + 8,
            host,
            file: 101,
            start,
            end,
            svid,
            pad: 0,
        }
    }

    /// A v1 host with two locks of one owner and a waiter, a v4 host of another client,
    /// and that client again through another VIP and in another namespace.
    fn table() -> LockTable {
        let hosts = [
            host(1, "10.77.0.1", "10.77.0.11", 1, NETNS),
            host(2, "10.77.0.1", "10.77.0.12", 4, NETNS),
            host(3, "10.77.0.2", "10.77.0.12", 4, NETNS),
            host(4, "10.77.0.1", "10.77.0.12", 4, NETNS + 1),
        ];
        let mut records = Records {
            locks: vec![lock(1, 7, 0, 9), lock(1, 7, 20, 29), lock(2, 7, 40, 49)],
            files: vec![FileRecord {
                kind: kind::FILE,
                dev: 8 << 20,
                nlm_file: 100,
                files: [0, 101],
                ino: 5,
                locks: 0,
                digest: 0,
                fh_len: 32,
                bucket: 0,
                fh: [5; FH_MAX],
            }],
            waiters: vec![WaiterRecord {
                kind: kind::WAITER,
                mode: 1,
                block: 77,
                host: 1,
                nlm_file: 100,
                start: 40,
                end: table::Range::EOF,
                svid: 8,
                granted: 0,
            }],
            hosts: hosts
                .into_iter()
                .map(|host| (host.host, host))
                .collect::<HashMap<_, _>>(),
            ..Records::default()
        };
        records.locks.push(lock(3, 7, 60, 69));
        records.locks.push(lock(4, 7, 80, 89));
        assemble(records, None).table
    }

    #[test]
    fn only_this_vip_of_this_namespace_is_a_target() {
        let targets = targets(&table(), address("10.77.0.1"), NETNS);
        let clients: Vec<_> = targets.iter().map(|target| target.host.client).collect();
        assert_eq!(clients, [address("10.77.0.11"), address("10.77.0.12")]);
        assert_eq!(
            (&*targets[1].waiting, &*targets[1].held),
            (&[][..], &[][..])
        );
        assert_eq!(targets[0].monitored, None);
        assert_eq!(targets[1].monitored.as_ref().unwrap().cookie, [9; 16]);
    }

    #[test]
    fn a_v1_host_is_released_request_by_request() {
        let targets = targets(&table(), address("10.77.0.1"), NETNS);
        let kinds = |requests: &[Request]| -> Vec<_> {
            requests.iter().map(|r| (r.svid, r.kind.clone())).collect()
        };
        let range = Range {
            offset: 40,
            length: 0,
        };
        let waiting = RequestKind::Waiting {
            range,
            exclusive: true,
        };
        assert_eq!(kinds(&targets[0].waiting), [(8, waiting)]);
        let whole = RequestKind::Held {
            range: Range::WHOLE_FILE,
        };
        assert_eq!(kinds(&targets[0].held), [(7, whole)]);
        assert_eq!(targets[0].held[0].file_handle, [5; 32]);
    }

    #[test]
    fn one_by_one_each_lock_is_a_request_of_its_own() {
        let targets = targets_one_by_one(&table(), address("10.77.0.1"), NETNS);
        let held = |offset| RequestKind::Held {
            range: Range { offset, length: 10 },
        };
        let kinds: Vec<_> = targets[0].held.iter().map(|r| r.kind.clone()).collect();
        assert_eq!(kinds, [held(0), held(20)]);
        assert_eq!(targets[0].waiting.len(), 1);
        assert_eq!(targets[1].held[0].kind, held(40));
    }

    #[test]
    fn a_range_of_the_kernel_is_a_length_on_the_wire() {
        let range = |start, end| nlm_range(table::Range { start, end });
        assert_eq!(
            range(10, 19),
            Range {
                offset: 10,
                length: 10
            }
        );
        assert_eq!(
            range(0, 0),
            Range {
                offset: 0,
                length: 1
            }
        );
        assert_eq!(
            range(10, table::Range::EOF),
            Range {
                offset: 10,
                length: 0
            }
        );
    }

    #[test]
    fn other_namespaces_and_other_vips_are_noticed() {
        let table = table();
        assert!(is_served_elsewhere(&table, address("10.77.0.1"), NETNS));
        assert!(!is_served_elsewhere(&table, address("10.77.0.2"), NETNS));
        let others = clients_of_others(&table, address("10.77.0.1"), NETNS);
        assert_eq!(others, [address("10.77.0.12")].into());
    }
}
