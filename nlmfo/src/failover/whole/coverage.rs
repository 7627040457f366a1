//! What of a record is back. Pure: a record and the present tables in, what is missing out.
//!
//! What must agree is coverage, not lists: a lock may come back merged with another or as a write
//! delegation, behind which its client locks alone; an open as a delegation. An NFSv4 client has
//! another ID after a restart, and other stateids; it is known by its name.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::failover::reclaim::{Expected, split};
use crate::failover::record::Record;
use crate::foreign::Name;
use crate::observe::describe::{LockLine, ShareLine, hex};
use crate::observe::states::describe::StateLine;
use crate::observe::states::{Access, Kind, Standing, StateTable};
use crate::observe::table::{LockTable, Mode, Range};
use crate::observe::unlocks::Unlocked;

/// What is held now; no states if they could not be read.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    pub locks: &'a LockTable,
    pub states: Option<&'a StateTable>,
    /// What NFSv3 clients gave up since the server was started.
    pub unlocked: &'a [Unlocked],
}

/// What of a record is not back, as in the record; of an NFSv4 lock the ranges that are not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Missing {
    pub locks: Vec<LockLine>,
    pub shares: Vec<ShareLine>,
    pub nfs4: Vec<StateLine>,
}

/// How much of a record is back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Locks, shares, and NFSv4 opens and locked ranges of the record.
    pub expected: usize,
    pub missing: Missing,
    /// Locks of NFSv3 that their clients gave up meanwhile, as in the record.
    pub given_up: Vec<LockLine>,
    /// Files on which a client had a delegation and has none now. It may have locked behind it,
    /// and reclaim these locks only after its opens, which are all that a record can name.
    pub hidden: usize,
}

impl Missing {
    pub fn len(&self) -> usize {
        self.locks.len() + self.shares.len() + states(&self.nfs4)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether some of it may still come back. A client of 4.1 or newer says when it has reclaimed
    /// all that it wants (RFC 8881, 18.51): it gave up the rest while it could not reach the
    /// server. Clients of NFSv3 and 4.0 do not say it.
    pub fn may_come(&self, now: Option<&StateTable>) -> bool {
        let clients = now.map_or(&[][..], |table| &table.clients);
        let done: BTreeSet<&Name> = (clients.iter())
            .filter(|client| client.has_reclaimed && !client.name.is_cut())
            .map(|client| &client.name)
            .collect();
        let is_done = |line: &StateLine| done.contains(&line.client.client_name);
        !self.locks.is_empty() || !self.shares.is_empty() || !self.nfs4.iter().all(is_done)
    }
}

/// Opens and locked ranges.
fn states(lines: &[StateLine]) -> usize {
    lines.iter().map(|line| line.ranges.len().max(1)).sum()
}

/// A client's file: its name, and the file handle in hexadecimal.
type Place = (Name, String);

/// What a client holds on a file by NFSv4.
#[derive(Debug, Default)]
struct Held {
    opens: Access,
    delegated: Option<Access>,
    ranges: Vec<(Mode, Range)>,
}

impl Held {
    fn delegates(&self, access: Access) -> bool {
        // A write delegation lets its client open and lock in any way (RFC 8881, 10.4).
        let delegated = self.delegated.unwrap_or_default();
        delegated.write || (delegated.read && !access.write)
    }

    fn opened(&self, access: Access) -> bool {
        let covers = |may: bool, wanted: bool| may || !wanted;
        (covers(self.opens.read, access.read) && covers(self.opens.write, access.write))
            || self.delegates(access)
    }

    /// Whether every byte is locked in at least this mode, also by several locks.
    fn locked(&self, mode: Mode, range: Range) -> bool {
        let write = mode == Mode::Write;
        if self.delegates(Access {
            read: !write,
            write,
        }) {
            return true;
        }
        let mut ranges: Vec<Range> = (self.ranges.iter())
            .filter(|(held, _)| *held >= mode)
            .map(|(_, range)| *range)
            .collect();
        ranges.sort_unstable();
        let mut next = range.start;
        for held in ranges {
            if held.start > next {
                return false;
            }
            if held.end >= range.end {
                return true;
            }
            next = next.max(held.end.saturating_add(1));
        }
        false
    }
}

impl Coverage {
    pub fn of(record: &Record, now: Present<'_>) -> Self {
        let locks = Expected::all(record);
        let shares = shares(record, now.locks);
        let held = now.states.map(held).unwrap_or_default();
        let nothing = Held::default();
        let (missing, given_up) = split(locks.missing(now.locks), now.unlocked);
        let mut coverage = Coverage {
            expected: locks.len() + record.shares.len(),
            missing: Missing {
                locks: missing.into_iter().cloned().collect(),
                shares,
                nfs4: Vec::new(),
            },
            given_up: given_up.into_iter().cloned().collect(),
            hidden: 0,
        };
        let mut hidden = BTreeSet::new();
        for line in record
            .nfs4
            .iter()
            .filter(|line| line.standing == Standing::Held)
        {
            let Some(file) = &line.file else { continue };
            let place: Place = (line.client.client_name.clone(), file.fh.clone());
            let now = held.get(&place).unwrap_or(&nothing);
            match line.kind {
                Kind::Open => {
                    coverage.expected += 1;
                    if !now.opened(line.access) {
                        coverage.missing.nfs4.push(line.clone());
                    }
                }
                Kind::Lock => {
                    coverage.expected += line.ranges.len();
                    let mut left = line.clone();
                    (left.ranges).retain(|range| !now.locked(range.mode, range.range));
                    if !left.ranges.is_empty() {
                        coverage.missing.nfs4.push(left);
                    }
                }
                // A client reclaims only those that it uses.
                Kind::Delegation if now.delegated.is_none() => {
                    hidden.insert(place);
                }
                Kind::Delegation | Kind::Layout | Kind::Other => {}
            }
        }
        coverage.hidden = hidden.len();
        coverage
    }

    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

fn shares(record: &Record, now: &LockTable) -> Vec<ShareLine> {
    let is_back = |line: &ShareLine| {
        now.shares.iter().any(|share| {
            let host = &now.host(share.host).key;
            host.client == line.host.client
                && (share.access, share.deny) == (line.access, line.deny)
                && hex(&share.owner) == line.owner
                && hex(&now.file(share.file).fh) == line.file.fh
        })
    };
    let shares = record.shares.iter();
    shares.filter(|line| !is_back(line)).cloned().collect()
}

fn held(table: &StateTable) -> BTreeMap<Place, Held> {
    let mut all: BTreeMap<Place, Held> = BTreeMap::new();
    for state in table.states.iter().filter(|state| state.is_held()) {
        let Some(file) = &state.file else { continue };
        let name = table.clients[state.client].name.clone();
        let held = all.entry((name, hex(&file.fh))).or_default();
        let add = |to: &mut Access| {
            to.read |= state.access.read;
            to.write |= state.access.write;
        };
        match state.kind {
            Kind::Open => add(&mut held.opens),
            Kind::Delegation => add(held.delegated.get_or_insert_default()),
            Kind::Lock => held.ranges.extend(&state.ranges),
            Kind::Layout | Kind::Other => {}
        }
    }
    all
}

#[cfg(test)]
pub(crate) mod tests;
