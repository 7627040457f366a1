//! Which part of a record is back. Pure: a record and the present tables in, what is missing out.
//!
//! What must agree is coverage, not lists: a lock may come back merged with another or as a write
//! delegation, behind which its client locks alone; an open as a delegation. An NFSv4 client has
//! another ID after a restart, and other stateids; it is known by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::failover::reclaim::{Expected, split};
use crate::failover::record::Record;
use crate::foreign::Name;
use crate::observe::describe::{LockLine, ShareLine, hex};
use crate::observe::states::describe::{RangeLine, StateLine};
use crate::observe::states::{Access, Kind, Standing, StateTable};
use crate::observe::table::{LockTable, Mode, Range};
use crate::observe::unlocks::{GivenUp, Unlocked4};

/// What is held now; no states if they could not be read.
#[derive(Clone, Copy, Debug)]
pub struct Present<'a> {
    pub locks: &'a LockTable,
    pub states: Option<&'a StateTable>,
    /// What clients gave up since the server was started.
    pub given_up: &'a GivenUp,
    /// It is certain that nfsd has refused no reclaim since then.
    pub refused_no_reclaim4: bool,
}

/// Lines of a record. An NFSv4 lock may have only some of its ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub locks: Vec<LockLine>,
    pub shares: Vec<ShareLine>,
    pub nfs4: Vec<StateLine>,
}

/// What did not come back.
impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for lock in &self.locks {
            writeln!(
                f,
                "  ! not reclaimed: {} ({}) through {}: {} lock {} of {}, svid {}",
                lock.host.client,
                lock.host.client_name,
                lock.host.vip,
                lock.mode,
                lock.range,
                lock.file,
                lock.svid
            )?;
        }
        for share in &self.shares {
            writeln!(
                f,
                "  ! not reclaimed: {} ({}): share of {}",
                share.host.client, share.host.client_name, share.file
            )?;
        }
        for state in &self.nfs4 {
            writeln!(f, "  ! not reclaimed: {state}")?;
        }
        Ok(())
    }
}

/// How much of a record is back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Locks, shares, and NFSv4 opens and locked ranges of the record.
    pub expected: usize,
    /// What is not back, and may still be wanted.
    pub missing: Part,
    /// What is not back because the clients gave it up meanwhile.
    pub given_up: Part,
    /// Files on which a client had a delegation and has none now. It may have locked behind it,
    /// and reclaim these locks only after its opens, which are all that a record can name.
    pub hidden: usize,
}

impl Part {
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
        let done = now.map(done).unwrap_or_default();
        let is_done = |line: &StateLine| done.contains(&line.client.client_name);
        !self.locks.is_empty() || !self.shares.is_empty() || !self.nfs4.iter().all(is_done)
    }
}

/// The clients that have sent `RECLAIM_COMPLETE`.
fn done(now: &StateTable) -> BTreeSet<&Name> {
    (now.clients.iter())
        .filter(|client| client.has_reclaimed && !client.name.is_cut())
        .map(|client| &client.name)
        .collect()
}

/// Whether a client of 4.1 or newer in the record has come back and has not yet sent `RECLAIM_COMPLETE`:
/// it may have got more just before the stop than is recorded.
pub fn are_reclaiming(record: &Record, now: &StateTable) -> bool {
    let done = done(now);
    let is_back = |line: &StateLine| {
        let name = &line.client.client_name;
        let mut clients = now.clients.iter().filter(|client| client.name == *name);
        // One that connects may leave an unconfirmed entry behind.
        clients.any(|client| client.minor > 0 && client.info.status != "unconfirmed")
            && !done.contains(name)
    };
    record.nfs4.iter().any(is_back)
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
        let done = (now.states.filter(|_| now.refused_no_reclaim4))
            .map(done)
            .unwrap_or_default();
        // A client that has sent RECLAIM_COMPLETE did not want the rest, or was refused it.
        let is_given_up = |line: &StateLine, range| {
            done.contains(&line.client.client_name) || is_given_up(line, range, &now.given_up.nfs4)
        };
        let (missing, given_up) = split(locks.missing(now.locks), &now.given_up.nfs3);
        let mut coverage = Coverage {
            expected: locks.len() + record.shares.len(),
            missing: Part {
                locks: missing.into_iter().cloned().collect(),
                shares,
                nfs4: Vec::new(),
            },
            given_up: Part {
                locks: given_up.into_iter().cloned().collect(),
                ..Part::default()
            },
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
            let held = held.get(&place).unwrap_or(&nothing);
            match line.kind {
                Kind::Open => {
                    coverage.expected += 1;
                    if !held.opened(line.access) {
                        match is_given_up(line, None) {
                            true => coverage.given_up.nfs4.push(line.clone()),
                            false => coverage.missing.nfs4.push(line.clone()),
                        }
                    }
                }
                Kind::Lock => {
                    coverage.expected += line.ranges.len();
                    let ranges = line.ranges.iter();
                    let left = ranges.filter(|range| !held.locked(range.mode, range.range));
                    let (given_up, missing) = left
                        .cloned()
                        .partition(|range| is_given_up(line, Some(range.range)));
                    add(&mut coverage.given_up, line, given_up);
                    add(&mut coverage.missing, line, missing);
                }
                // A client reclaims only those that it uses.
                Kind::Delegation if held.delegated.is_none() => {
                    hidden.insert(place);
                }
                Kind::Delegation | Kind::Layout | Kind::Other => {}
            }
        }
        coverage.hidden = hidden.len();
        coverage
    }

    /// Adds what cannot come back because of the configuration. Its clients did not give it up, even if
    /// they sent `RECLAIM_COMPLETE`: they could not ask for it.
    pub fn and_of_lost(mut self, lost: &Record, now: Present<'_>) -> Self {
        let present = Present {
            given_up: &GivenUp::default(),
            refused_no_reclaim4: false,
            ..now
        };
        let Coverage {
            expected,
            missing,
            given_up: _,
            hidden,
        } = Coverage::of(lost, present);
        self.expected += expected;
        self.missing.locks.extend(missing.locks);
        self.missing.shares.extend(missing.shares);
        self.missing.nfs4.extend(missing.nfs4);
        self.hidden += hidden;
        self
    }

    pub fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Adds these ranges of a lock.
fn add(part: &mut Part, lock: &StateLine, ranges: Vec<RangeLine>) {
    if !ranges.is_empty() {
        part.nfs4.push(StateLine {
            ranges,
            ..lock.clone()
        });
    }
}

/// Whether a client gave up this range of a lock, or closed an open. Its LOCKU or CLOSE has the stateid
/// in the record.
fn is_given_up(line: &StateLine, range: Option<Range>, unlocked: &[Unlocked4]) -> bool {
    unlocked.iter().any(|call| {
        let is_covered = match (call.range, range) {
            (Some(given_up), Some(range)) => given_up.covers(range),
            (None, None) => true,
            _ => false,
        };
        // The generation comes first.
        is_covered && line.stateid.get(8..) == Some(&hex(&call.state))
    })
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
mod tests;
