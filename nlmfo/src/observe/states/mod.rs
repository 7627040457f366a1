//! What nfsd holds for its NFSv4 clients: opens, locks, delegations, layouts.
//!
//! Read from `clients/N/states` and `/proc/locks` while probes add what the texts
//! lack; exact when nothing changed between two reads of the states around one of the
//! locks: every LOCK, LOCKU and OPEN raises the generation of its state.

pub mod assemble;
pub mod describe;
pub mod info;
#[cfg(test)]
pub mod sample;
pub mod take;

use std::net::IpAddr;

use crate::foreign::Name;

use super::table::{FileInfo, Mode, Range};
use info::Info;

/// A client of nfsd by NFSv4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nfs4Client {
    /// N of `/proc/fs/nfsd/clients/N`.
    pub number: u64,
    /// nfsd's name for it: `cl_boot`, `cl_id`.
    pub id: [u32; 2],
    /// The minor version: 0, 1 or 2.
    pub minor: u32,
    /// The owner string that the client introduced itself with, its first 128 bytes.
    pub name: Name,
    /// Where it introduced itself from.
    pub address: IpAddr,
    /// Where its connections come from, each once, in order; of 4.1 and newer alone.
    pub peers: Vec<IpAddr>,
    /// The server addresses that it uses, each once, in order: of 4.0 the one by which
    /// it introduced itself, of 4.1 and newer those of its connections.
    pub vips: Vec<IpAddr>,
    /// Whether `vips` may lack one: no connection, or one of an unknown address.
    pub vip_unknown: bool,
    /// Connections, of 4.1 and newer alone: nfsd keeps no list of those of 4.0.
    pub connections: Option<usize>,
    /// Whether it has sent `RECLAIM_COMPLETE` since the server started. 4.0 does not have it.
    pub has_reclaimed: bool,
    pub info: Info,
}

impl Nfs4Client {
    /// Whether it uses, or may use, this VIP.
    pub fn may_use(&self, vip: IpAddr) -> bool {
        self.vip_unknown || self.vips.contains(&vip)
    }

    /// Whether this is an address of the client.
    pub fn is_at(&self, address: IpAddr) -> bool {
        self.address == address || self.peers.contains(&address)
    }

    /// The id as `info` has it.
    pub fn id_text(&self) -> String {
        let [boot, id] = self.id;
        format!("{:#018x}", u64::from(boot) << 32 | u64::from(id))
    }
}

/// What a state is.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Open,
    Lock,
    Delegation,
    Layout,
    /// Of a kind that this nlmfo does not know.
    Other,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Kind::Open => "open",
            Kind::Lock => "lock",
            Kind::Delegation => "delegation",
            Kind::Layout => "layout",
            Kind::Other => "unknown",
        })
    }
}

/// Whether a state still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    Held,
    /// Kept only to answer a repeated CLOSE or DELEGRETURN.
    Closed,
    /// The client did not return a delegation in time.
    Revoked,
    /// An administrator took it away; the client has not acknowledged that yet.
    AdminRevoked,
}

/// What an open, lock or delegation allows, or denies others.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize,
)]
pub struct Access {
    pub read: bool,
    pub write: bool,
}

impl std::fmt::Display for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match (self.read, self.write) {
            (true, true) => "read-write",
            (true, false) => "read",
            (false, true) => "write",
            (false, false) => "none",
        })
    }
}

/// One of nfsd's stateids and what it stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Place of its client in [`StateTable::clients`].
    pub client: usize,
    pub kind: Kind,
    pub standing: Standing,
    pub access: Access,
    pub deny: Access,
    /// None of a state whose file is gone.
    pub file: Option<FileInfo>,
    /// The open or lock owner, its first 128 bytes; empty for other kinds.
    pub owner: Vec<u8>,
    /// What a lock covers; a lock's state may outlive its last range.
    pub ranges: Vec<(Mode, Range)>,
    /// The stateid.
    pub id: [u8; 16],
}

impl State {
    /// Whether it holds something.
    pub fn is_held(&self) -> bool {
        self.standing == Standing::Held && !(self.kind == Kind::Lock && self.ranges.is_empty())
    }
}

/// A lock that a client waits for, in the kernel's queue. Only clients of 4.1 and newer are
/// queued: nfsd tells them when the lock is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiter4 {
    /// Place of its client in [`StateTable::clients`].
    pub client: usize,
    /// Without a handle where no state of a client shows it.
    pub file: FileInfo,
    pub mode: Mode,
    pub range: Range,
    /// Its lock owner, the first 128 bytes; empty if the owner holds no lock.
    pub owner: Vec<u8>,
    /// Address of the owner in the kernel, which tells two that ask for the same.
    pub owner_at: u64,
}

/// The clients of one server, and their states in the clients' order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateTable {
    pub clients: Vec<Nfs4Client>,
    pub states: Vec<State>,
    pub waiters: Vec<Waiter4>,
    /// There are more waiters than could be read.
    pub waiters_cut: bool,
}

impl StateTable {
    /// The part of the clients that `keep` accepts.
    pub fn part(&self, mut keep: impl FnMut(&Nfs4Client) -> bool) -> StateTable {
        let mut part = StateTable::default();
        let mut places = vec![None; self.clients.len()];
        for (place, client) in self.clients.iter().enumerate().filter(|(_, c)| keep(c)) {
            places[place] = Some(part.clients.len());
            part.clients.push(client.clone());
        }
        part.states = (self.states.iter())
            .filter_map(|state| {
                let client = places[state.client]?;
                Some(State {
                    client,
                    ..state.clone()
                })
            })
            .collect();
        part.waiters = (self.waiters.iter())
            .filter_map(|waiter| {
                let client = places[waiter.client]?;
                Some(Waiter4 {
                    client,
                    ..waiter.clone()
                })
            })
            .collect();
        part.waiters_cut = self.waiters_cut;
        part
    }

    /// What the clients of a VIP hold, and those whose VIP is not known.
    pub fn held_through(&self, vip: IpAddr) -> StateTable {
        let mut part = self.part(|client| client.may_use(vip));
        part.states.retain(State::is_held);
        let mut holders = vec![false; part.clients.len()];
        for state in &part.states {
            holders[state.client] = true;
        }
        let mut holders = holders.into_iter();
        part.part(|_| holders.next().unwrap_or_default())
    }

    pub fn counts(&self) -> Counts4 {
        let mut counts = Counts4 {
            clients: self.clients.len(),
            ..Counts4::default()
        };
        (self.states.iter()).for_each(|state| counts.add(state));
        counts
    }

    /// Of each client, in their order.
    pub fn counts_of_each(&self) -> Vec<Counts4> {
        let one = Counts4 {
            clients: 1,
            ..Counts4::default()
        };
        let mut counts = vec![one; self.clients.len()];
        for state in &self.states {
            counts[state.client].add(state);
        }
        counts
    }
}

/// How much NFSv4 clients hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts4 {
    pub clients: usize,
    pub opens: usize,
    /// Locked ranges.
    pub locks: usize,
    pub delegations: usize,
    pub layouts: usize,
    /// States of a kind that this nlmfo does not know.
    pub others: usize,
}

impl Counts4 {
    fn add(&mut self, state: &State) {
        if !state.is_held() {
            return;
        }
        match state.kind {
            Kind::Open => self.opens += 1,
            Kind::Lock => self.locks += state.ranges.len(),
            Kind::Delegation => self.delegations += 1,
            Kind::Layout => self.layouts += 1,
            Kind::Other => self.others += 1,
        }
    }
}

impl Counts4 {
    /// Opens, locked ranges, delegations, layouts and others.
    pub fn total(&self) -> usize {
        self.opens + self.locks + self.delegations + self.layouts + self.others
    }
}

impl std::ops::AddAssign for Counts4 {
    fn add_assign(&mut self, other: Self) {
        self.clients += other.clients;
        self.opens += other.opens;
        self.locks += other.locks;
        self.delegations += other.delegations;
        self.layouts += other.layouts;
        self.others += other.others;
    }
}

impl std::fmt::Display for Counts4 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let plural = |n| if n == 1 { "" } else { "s" };
        write!(f, "{} client{} with", self.clients, plural(self.clients))?;
        let kinds = [
            (self.opens, "open"),
            (self.locks, "lock"),
            (self.delegations, "delegation"),
            (self.layouts, "layout"),
            (self.others, "unknown state"),
        ];
        let mut comma = "";
        for (count, what) in kinds.into_iter().filter(|(count, _)| *count > 0) {
            write!(f, "{comma} {count} {what}{}", plural(count))?;
            comma = ",";
        }
        if comma.is_empty() {
            f.write_str(" no state")?;
        }
        Ok(())
    }
}
