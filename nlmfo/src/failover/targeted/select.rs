//! Selects what a targeted release releases. Pure: tables in, selection or refusal out.

use std::net::IpAddr;
use std::path::PathBuf;

use super::id::RowId;
use super::on::On;
use crate::failover::evidence::{self, Item, Items};
use crate::observe::host::Host;
use crate::observe::states::{Counts4, Nfs4Client, State, StateTable};
use crate::observe::table::LockTable;

/// What is to be released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// All of a client.
    Client(IpAddr),
    /// What is on a file, of one client or of all.
    File { on: On, client: Option<IpAddr> },
    /// One row of `nlmfo locks`.
    Row(RowId),
}

/// How NFSv4 state on a file may be revoked: there is no way to revoke that of one file alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whole {
    /// All state on its filesystem, of NFSv3 and NFSv4.
    Filesystem(PathBuf),
    /// All NFSv4 state under an export.
    Export(PathBuf),
}

/// What was asked for.
#[derive(Clone, Debug)]
pub struct Asked {
    pub wanted: Wanted,
    /// Only through these server addresses; empty for all.
    pub vips: Vec<IpAddr>,
    pub nfs3: bool,
    pub nfs4: bool,
    /// An NFSv4 client may be expired even if it uses several server addresses, or an unknown one.
    pub all_vips: bool,
    pub whole: Option<Whole>,
}

/// What is released.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Of NFSv3, with all hosts and files.
    pub nlm: LockTable,
    /// The NFSv4 clients that are expired, or whose state is revoked, with that state.
    pub nfs4: StateTable,
    /// What is released in addition to what was asked for: the rest of a filesystem or export.
    pub besides: Besides,
}

/// What the release of a filesystem or export releases in addition.
#[derive(Clone, Debug, Default)]
pub struct Besides {
    pub nlm: LockTable,
    pub nfs4: StateTable,
}

impl Selection {
    pub fn is_empty(&self) -> bool {
        self.nlm.is_empty() && self.nfs4.clients.is_empty()
    }

    /// Every server address through which some of it was taken, each once, in order.
    pub fn vips(&self) -> Vec<IpAddr> {
        let hosts = [&self.nlm, &self.besides.nlm]
            .into_iter()
            .flat_map(|table| (table.active_hosts().into_iter()).map(|id| table.host(id).key.vip));
        let clients = self.nfs4.clients.iter().chain(&self.besides.nfs4.clients);
        let mut vips: Vec<IpAddr> = hosts
            .chain(clients.flat_map(|client| client.vips.iter().copied()))
            .collect();
        vips.sort_unstable();
        vips.dedup();
        vips
    }
}

/// Why nothing is released.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(
        "no lock has the ID {0} now: it is gone, or its range has changed; `nlmfo locks` shows \
         the IDs"
    )]
    NoRow(RowId),
    #[error("the ID {id} is shared by {rows} rows: release them by --file or --client")]
    Ambiguous { id: RowId, rows: usize },
    #[error(
        "the ID {id} is an NFSv4 {kind} of {client}, and only the client itself can give up a \
         single state, in a session of its own; `nlmfo release --client {client}` drops all that the \
         client has"
    )]
    OneState {
        id: RowId,
        kind: String,
        client: IpAddr,
    },
    #[error(
        "NFSv4 state is on it ({counts}), which the kernel cannot revoke for one file: --client \
         drops all state of a client, --unlock-filesystem revokes all state on the filesystem, \
         --unlock-export all NFSv4 state under the export, and --nfs 3 ignores it"
    )]
    StateOnFile { counts: Counts4 },
    #[error(
        "the NFSv4 client {name} ({client}) uses {vips}, and its state belongs to all of them: \
         --all-vips drops it, --nfs 3 ignores it"
    )]
    SeveralVips {
        client: IpAddr,
        name: String,
        vips: String,
    },
    #[error(
        "the NFSv4 client {name} ({client}) holds a lock there and does not renew its lease: it would \
         not give the revoked lock up, and once the filesystem is unmounted this kernel crashes on \
         such a lock; drop the client first: `nlmfo release --client {client}`"
    )]
    Silent { client: IpAddr, name: String },
    #[error(
        "a share of {0} has an owner of more than 63 bytes, which nlmfo reads only in part; --client \
         releases it with everything else that the client has"
    )]
    LongOwner(Host),
}

impl Refusal {
    /// Whether the kernel cannot do it, as opposed to the state being absent or the release refused.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Refusal::OneState { .. }
                | Refusal::StateOnFile { .. }
                | Refusal::Silent { .. }
                | Refusal::LongOwner(_)
        )
    }
}

/// Bytes of a share's owner that a snapshot has (`NAME_MAX`).
const OWNER_SEEN: usize = 64;

/// Selects from the tables. `nlm` is of this network namespace; `nfs4` is none if it is ignored or not
/// known.
pub fn select(
    asked: &Asked,
    nlm: &LockTable,
    nfs4: Option<&StateTable>,
) -> Result<Selection, Refusal> {
    let nothing = StateTable::default();
    let states = nfs4.unwrap_or(&nothing);
    let selection = match asked.wanted {
        Wanted::Client(client) => of_client(asked, client, nlm, states)?,
        Wanted::File { on, client } => of_file(asked, on, client, nlm, states)?,
        Wanted::Row(id) => row(asked, id, nlm, states)?,
    };
    if !matches!(asked.wanted, Wanted::Client(_)) {
        let long = (selection.nlm.shares.iter()).find(|share| share.owner.len() >= OWNER_SEEN);
        if let Some(share) = long {
            return Err(Refusal::LongOwner(selection.nlm.host(share.host).key));
        }
    }
    Ok(selection)
}

fn of_client(
    asked: &Asked,
    client: IpAddr,
    nlm: &LockTable,
    states: &StateTable,
) -> Result<Selection, Refusal> {
    let table = nlm.part(|host| asked.nfs3 && host.client == client && asked.through(host.vip));
    let of_it = |seen: &Nfs4Client| {
        asked.nfs4
            && seen.is_at(client)
            && (asked.vips.is_empty() || asked.vips.iter().any(|&vip| seen.may_use(vip)))
    };
    let nfs4 = states.part(of_it);
    // Without --vip, a client without a connection has no other address that could be meant.
    let unclear =
        |seen: &&Nfs4Client| seen.vips.len() > 1 || (seen.vip_unknown && !asked.vips.is_empty());
    if let Some(seen) = nfs4.clients.iter().find(unclear)
        && !asked.all_vips
    {
        return Err(Refusal::SeveralVips {
            client,
            name: seen.name.to_string(),
            vips: match seen.vips.is_empty() {
                true => "an unknown address, since it is not connected".to_owned(),
                false => listed(&seen.vips),
            },
        });
    }
    Ok(Selection {
        nlm: table,
        nfs4,
        besides: Besides::default(),
    })
}

fn of_file(
    asked: &Asked,
    on: On,
    client: Option<IpAddr>,
    nlm: &LockTable,
    states: &StateTable,
) -> Result<Selection, Refusal> {
    let is_of = |seen: IpAddr| client.is_none_or(|client| client == seen);
    let wanted = |host: &Host| asked.nfs3 && is_of(host.client) && asked.through(host.vip);
    let table = on_files(&nlm.part(wanted), |file| on.has_inode(file));
    let through = |seen: &Nfs4Client| {
        client.is_none_or(|client| seen.is_at(client))
            && (asked.vips.is_empty() || asked.vips.iter().any(|&vip| seen.may_use(vip)))
    };
    let all = if asked.nfs4 {
        states.part(through)
    } else {
        StateTable::default()
    };
    let mine = |state: &State| state.is_held() && state.file.as_ref().is_some_and(|f| on.has(f));
    let nfs4 = holders(&all, mine);
    let beside = |state: &State| {
        let is_on = |file| on.filesystem().has(file) && !on.has(file);
        state.is_held() && state.file.as_ref().is_none_or(is_on)
    };
    let besides = match &asked.whole {
        None if nfs4.states.is_empty() => Besides::default(),
        None => {
            return Err(Refusal::StateOnFile {
                counts: nfs4.counts(),
            });
        }
        Some(whole) => Besides {
            nlm: match whole {
                Whole::Filesystem(_) => {
                    let rest = on_files(nlm, |file| on.filesystem().has_inode(file));
                    without(&rest, &table)
                }
                Whole::Export(_) => LockTable::default(),
            },
            // Also of clients and addresses that were not asked for.
            nfs4: holders(states, |state| {
                beside(state) || (mine(state) && !nfs4.states.iter().any(|s| s.id == state.id))
            }),
        },
    };
    Ok(Selection {
        nlm: table,
        nfs4,
        besides,
    })
}

fn row(
    asked: &Asked,
    id: RowId,
    nlm: &LockTable,
    states: &StateTable,
) -> Result<Selection, Refusal> {
    let table = pick(nlm, |item| RowId::of(item) == id);
    let of_nfs4: Vec<&State> = (states.states.iter())
        .filter(|state| ids_of(states, state).any(|other| other == id))
        .collect();
    let of_nlm = table.locks.len() + table.waiters.len() + table.shares.len();
    let waits = (states.waiters.iter())
        .map(|waiter| (&states.clients[waiter.client], waiter))
        .find(|(client, waiter)| RowId::of_waiter4(client, waiter) == id);
    match (of_nlm, &of_nfs4[..]) {
        (0, []) => Err(match waits {
            Some((client, _)) => Refusal::OneState {
                id,
                kind: "request".to_owned(),
                client: client.address,
            },
            None => Refusal::NoRow(id),
        }),
        (1, []) if asked.nfs3 => Ok(Selection {
            nlm: table,
            ..Selection::default()
        }),
        (0, [state]) => Err(Refusal::OneState {
            id,
            kind: state.kind.to_string(),
            client: states.clients[state.client].address,
        }),
        (rows, states) => Err(Refusal::Ambiguous {
            id,
            rows: rows + states.len(),
        }),
    }
}

/// The IDs of the rows that a state has in `nlmfo locks`.
pub fn ids_of<'a>(table: &'a StateTable, state: &'a State) -> impl Iterator<Item = RowId> + 'a {
    let client = &table.clients[state.client];
    let whole = state.ranges.is_empty().then_some(None);
    let ranges = state.ranges.iter().copied().map(Some);
    (whole.into_iter().chain(ranges)).map(move |range| RowId::of_state(client, state, range))
}

impl Asked {
    fn through(&self, vip: IpAddr) -> bool {
        self.vips.is_empty() || self.vips.contains(&vip)
    }

    /// Whether a lock, waiter or share is to be released, whenever it was taken. Of a row, or of a file
    /// and all clients, only what was there at first is to be released: `seen` tells.
    pub fn covers(&self, item: &Item, seen: &Items) -> bool {
        match self.wanted {
            Wanted::Client(client) => {
                self.nfs3 && item.host.client == client && self.through(item.host.vip)
            }
            Wanted::File {
                on,
                client: Some(client),
            } => {
                let is_its = item.host.client == client && self.through(item.host.vip);
                self.nfs3 && is_its && on.has_inode(item.file)
            }
            _ => seen.contains_key(item),
        }
    }
}

pub fn listed(vips: &[IpAddr]) -> String {
    let vips: Vec<String> = vips.iter().map(IpAddr::to_string).collect();
    vips.join(" and ")
}

/// The part of a table on files that `keep` accepts.
fn on_files(table: &LockTable, keep: impl Fn((u32, u32, u64)) -> bool) -> LockTable {
    let kept: Vec<bool> = (table.files.iter())
        .map(|file| keep((file.major, file.minor, file.ino)))
        .collect();
    let mut part = table.clone();
    part.locks.retain(|lock| kept[lock.file.index()]);
    part.waiters.retain(|waiter| kept[waiter.file.index()]);
    part.shares.retain(|share| kept[share.file.index()]);
    part
}

fn without(table: &LockTable, other: &LockTable) -> LockTable {
    let mut rest = table.clone();
    rest.locks.retain(|lock| !other.locks.contains(lock));
    rest.waiters
        .retain(|waiter| !other.waiters.contains(waiter));
    rest.shares.retain(|share| !other.shares.contains(share));
    rest
}

/// The states that `keep` accepts, with the clients that have them.
pub fn holders(table: &StateTable, keep: impl Fn(&State) -> bool) -> StateTable {
    let mut has = vec![false; table.clients.len()];
    for state in table.states.iter().filter(|state| keep(state)) {
        has[state.client] = true;
    }
    let mut has = has.into_iter();
    let mut part = table.part(|_| has.next().unwrap_or_default());
    part.states.retain(|state| keep(state));
    part
}

/// The part of a table that `keep` accepts, with all hosts and files.
pub fn pick(table: &LockTable, keep: impl Fn(&Item) -> bool) -> LockTable {
    let keep = |item: Item| keep(&item);
    LockTable {
        hosts: table.hosts.clone(),
        files: table.files.clone(),
        locks: picked(&table.locks, evidence::locks(table).map(keep)),
        waiters: picked(&table.waiters, evidence::waiters(table).map(keep)),
        shares: picked(&table.shares, evidence::shares(table).map(keep)),
    }
}

fn picked<T: Clone>(all: &[T], keep: impl Iterator<Item = bool>) -> Vec<T> {
    (all.iter().zip(keep))
        .filter(|(_, keep)| *keep)
        .map(|(one, _)| one.clone())
        .collect()
}

#[cfg(test)]
mod tests;
