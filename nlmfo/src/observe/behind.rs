//! Which locks a request waits for: those that conflict with it. Pure.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::host::Host;
use super::local::locals;
use super::states::{StateTable, Waiter4};
use super::table::{FileInfo, Inode, LockTable, Mode, Range, Waiter, conflict};
use crate::foreign::Name;
use crate::kernel::locks::Listed;

/// A lock that a request waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    #[serde(flatten)]
    pub who: Who,
    pub mode: Mode,
    pub range: Range,
}

/// Whose lock it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Who {
    Client {
        client: IpAddr,
        client_name: Name,
        /// `3`, or `4` with the minor version.
        nfs: String,
        vips: Vec<IpAddr>,
    },
    /// A process of this node, or a server of another network namespace.
    Local { pid: i32 },
}

impl Holder {
    /// The client that holds it; none of a process of this node.
    pub fn client(&self) -> Option<IpAddr> {
        match &self.who {
            Who::Client { client, .. } => Some(*client),
            Who::Local { .. } => None,
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Client { client, nfs, .. } => write!(f, "{client} (NFSv{nfs})")?,
            Who::Local { pid } => write!(f, "local process {pid}")?,
        }
        write!(f, " {} {}", self.mode, self.range)
    }
}

/// Whose lock it is in the kernel: one owner's locks do not conflict.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Owner {
    Nlm(Host, u32),
    Nfs4([u32; 2], Vec<u8>),
    Local,
}

/// Everything that is locked.
#[derive(Debug, Default)]
pub struct Holders {
    by_inode: HashMap<Inode, Vec<(Owner, Holder)>>,
}

impl Holders {
    /// `all` is the kernel's list of everything that is held.
    pub fn new(nlm: &LockTable, states: &StateTable, all: Vec<Listed>) -> Self {
        let mut holders = Holders::of_clients(nlm, states, |_| true);
        for lock in locals(all, nlm, states) {
            if !matches!(&*lock.class, "POSIX" | "OFDLCK") {
                continue;
            }
            let mode = match lock.write {
                true => Mode::Write,
                false => Mode::Read,
            };
            let range = Range {
                start: lock.start,
                end: lock.end.unwrap_or(Range::EOF),
            };
            let who = Who::Local { pid: lock.pid };
            let inode = (lock.major, lock.minor, lock.ino);
            holders.add(inode, Owner::Local, who, (mode, range));
        }
        holders
    }

    /// Without local processes, of the files that somebody waits for.
    pub fn of_awaited(nlm: &LockTable, states: &StateTable) -> Self {
        let of_nlm = nlm.waiters.iter().filter(|waiter| !waiter.granted);
        let of_nlm = of_nlm.map(|waiter| nlm.file(waiter.file));
        let files = of_nlm.chain(states.waiters.iter().map(|waiter| &waiter.file));
        let awaited: HashSet<Inode> = files.map(FileInfo::inode).collect();
        match awaited.is_empty() {
            true => Holders::default(),
            false => Holders::of_clients(nlm, states, |file| awaited.contains(&file)),
        }
    }

    fn of_clients(nlm: &LockTable, states: &StateTable, keep: impl Fn(Inode) -> bool) -> Self {
        let mut holders = Holders::default();
        for lock in &nlm.locks {
            let (file, host) = (nlm.file(lock.file), nlm.host(lock.host));
            if !keep(file.inode()) {
                continue;
            }
            let who = Who::Client {
                client: host.key.client,
                client_name: host.name.clone(),
                nfs: "3".to_owned(),
                vips: vec![host.key.vip],
            };
            let owner = Owner::Nlm(host.key, lock.svid);
            holders.add(file.inode(), owner, who, (lock.mode, lock.range));
        }
        for state in &states.states {
            let client = &states.clients[state.client];
            let Some(file) = state.file.as_ref().filter(|file| keep(file.inode())) else {
                continue;
            };
            for &held in &state.ranges {
                let who = Who::Client {
                    client: client.address,
                    client_name: client.name.clone(),
                    nfs: format!("4.{}", client.minor),
                    vips: client.vips.clone(),
                };
                let owner = Owner::Nfs4(client.id, state.owner.clone());
                holders.add(file.inode(), owner, who, held);
            }
        }
        holders
    }

    fn add(&mut self, inode: Inode, owner: Owner, who: Who, (mode, range): (Mode, Range)) {
        let all = self.by_inode.entry(inode).or_default();
        all.push((owner, Holder { who, mode, range }));
    }

    /// The locks that an NFSv3 request waits for.
    pub fn of(&self, table: &LockTable, waiter: &Waiter) -> Vec<Holder> {
        let file = table.file(waiter.file);
        let owner = Owner::Nlm(table.host(waiter.host).key, waiter.svid);
        self.against(file.inode(), &owner, waiter.mode, waiter.range)
    }

    /// The locks that an NFSv4 request waits for.
    pub fn of4(&self, table: &StateTable, waiter: &Waiter4) -> Vec<Holder> {
        let owner = Owner::Nfs4(table.clients[waiter.client].id, waiter.owner.clone());
        self.against(waiter.file.inode(), &owner, waiter.mode, waiter.range)
    }

    fn against(&self, inode: Inode, owner: &Owner, mode: Mode, range: Range) -> Vec<Holder> {
        let all = self.by_inode.get(&inode).into_iter().flatten();
        let conflicts = |(other, held): &&(Owner, Holder)| {
            other != owner && conflict((held.mode, held.range), (mode, range))
        };
        all.filter(conflicts)
            .map(|(_, held)| held.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::states::{Kind, State, sample};

    const FILE: Inode = (8, 1, 5);

    fn file() -> FileInfo {
        FileInfo {
            major: FILE.0,
            minor: FILE.1,
            ino: FILE.2,
            fh: vec![1],
        }
    }

    fn listed(write: bool, start: u64, end: u64) -> Listed {
        Listed {
            class: "POSIX".into(),
            write,
            pid: 77,
            major: FILE.0,
            minor: FILE.1,
            ino: FILE.2,
            start,
            end: Some(end),
        }
    }

    fn states() -> StateTable {
        let held = |start, end| (Mode::Write, Range { start, end });
        StateTable {
            clients: vec![sample::client(&["10.77.0.1"])],
            states: vec![State {
                file: Some(file()),
                owner: b"one".to_vec(),
                ranges: vec![held(0, 9), held(20, 29)],
                ..sample::state(0, Kind::Lock)
            }],
            ..StateTable::default()
        }
    }

    fn waiter(owner: &[u8], mode: Mode, start: u64, end: u64) -> Waiter4 {
        Waiter4 {
            client: 0,
            file: file(),
            mode,
            range: Range { start, end },
            owner: owner.to_vec(),
            owner_at: 1,
        }
    }

    #[test]
    fn a_request_waits_for_what_it_conflicts_with_alone() {
        let states = states();
        let kernel = vec![
            listed(true, 0, 9),
            listed(true, 20, 29),
            listed(false, 40, 49),
        ];
        let holders = Holders::new(&LockTable::default(), &states, kernel);
        let behind = |owner: &[u8], mode, start, end| -> Vec<String> {
            let waiter = waiter(owner, mode, start, end);
            let all = holders.of4(&states, &waiter);
            all.iter().map(Holder::to_string).collect()
        };
        let first = "10.77.1.1 (NFSv4.1) write 0-9";
        let local = "local process 77 read 40-49";
        assert_eq!(behind(b"two", Mode::Read, 5, 14), [first]);
        assert_eq!(behind(b"one", Mode::Write, 5, 44), [local]);
        assert_eq!(behind(b"", Mode::Write, 9, 40).len(), 3);
        assert_eq!(behind(b"", Mode::Read, 30, 49), [""; 0]);
    }

    #[test]
    fn only_awaited_files_are_looked_at() {
        let mut states = states();
        let nlm = LockTable::default();
        assert!(Holders::of_awaited(&nlm, &states).by_inode.is_empty());
        let waits = waiter(b"two", Mode::Write, 5, 14);
        states.waiters = vec![waits.clone()];
        let holders = Holders::of_awaited(&nlm, &states);
        assert_eq!(holders.of4(&states, &waits).len(), 1);
    }
}
