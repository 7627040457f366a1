//! NFSv4's part of `nlmfo locks`.

use serde::Serialize;

use super::SNAPSHOT_TIMEOUT;
use crate::causes::chain;
use crate::cli::{LocksArgs, NfsVersion};
use crate::exit::Exit;
use crate::failover::targeted::id::RowId;
use crate::failover::targeted::on::On;
use crate::failover::targeted::report::Row;
use crate::failover::targeted::select::ids_of;
use crate::kernel::path::PathFinder;
use crate::observe::behind::{Holder, Holders};
use crate::observe::states::Kind;
use crate::observe::states::describe::{
    ClientLine4, StateLine, WaiterLine4, describe, describe_waiters,
};
use crate::observe::states::take::{StateSnapshot, StatesError};
use crate::output;
use crate::times::milliseconds;

/// NFSv4's part.
#[derive(Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub(super) enum Nfs4Listing {
    /// It was not asked for.
    LeftOut,
    /// It could not be read.
    Unknown { reason: String },
    Read {
        /// Whether nothing changed while it was read.
        exact: bool,
        passes: u32,
        took_ms: f64,
        /// The clients whose VIPs and addresses are wanted, including those without state.
        clients: Vec<ClientLine4>,
        states: Vec<ListedState>,
        /// Requests in the kernel's queue, of 4.1 and newer.
        waiters: Vec<Row<WaiterLine4>>,
        /// There are more waiters than could be read.
        waiters_cut: bool,
    },
}

/// A state with the ID of each of its rows: one for each range of a lock, or one.
#[derive(Serialize)]
pub(super) struct ListedState {
    pub ids: Vec<RowId>,
    #[serde(flatten)]
    pub line: StateLine,
}

impl Nfs4Listing {
    pub fn new(
        seen: Option<&Result<StateSnapshot, StatesError>>,
        args: &LocksArgs,
        on: On,
        holders: &Holders,
        paths: &mut PathFinder,
    ) -> Self {
        let snapshot = match seen {
            None => return Nfs4Listing::LeftOut,
            Some(Err(error)) => {
                return Nfs4Listing::Unknown {
                    reason: chain(error),
                };
            }
            Some(Ok(snapshot)) => snapshot,
        };
        let mut table = snapshot.table.part(|client| {
            (args.vip.is_empty() || args.vip.iter().any(|&vip| client.may_use(vip)))
                && (args.client.is_empty()
                    || args.client.iter().any(|&address| client.is_at(address)))
        });
        table.waiters.retain(|waiter| on.has(&waiter.file));
        (table.states).retain(|state| match (&state.file, on) {
            _ if args.waiters => false,
            (_, On::Anything) => true,
            (Some(file), on) => on.has(file),
            (None, _) => false,
        });
        Nfs4Listing::Read {
            exact: snapshot.exact,
            passes: snapshot.passes,
            took_ms: milliseconds(snapshot.took),
            clients: table.clients.iter().map(ClientLine4::from).collect(),
            states: (table.states.iter().zip(describe(&table, paths)))
                .map(|(state, line)| ListedState {
                    ids: ids_of(&table, state).collect(),
                    line,
                })
                .collect(),
            waiters: (table.waiters.iter())
                .zip(describe_waiters(&table, holders, paths))
                .map(|(waiter, line)| Row {
                    id: RowId::of_waiter4(&table.clients[waiter.client], waiter),
                    line,
                })
                .collect(),
            waiters_cut: table.waiters_cut,
        }
    }

    pub fn states(&self) -> &[ListedState] {
        match self {
            Nfs4Listing::Read { states, .. } => states,
            _ => &[],
        }
    }

    pub fn waiters(&self) -> &[Row<WaiterLine4>] {
        match self {
            Nfs4Listing::Read { waiters, .. } => waiters,
            _ => &[],
        }
    }

    /// Notes why the list is incomplete. An error in reading NFSv4 state fails the command only if
    /// `--nfs 4` was given.
    pub fn exit(&self, nfs: Option<NfsVersion>) -> Exit {
        if let Nfs4Listing::Read {
            waiters_cut: true, ..
        } = self
        {
            output::note("not all NFSv4 waiters are listed: too many wait for one lock");
        }
        match self {
            Nfs4Listing::Read { exact: false, .. } => {
                output::note(format_args!(
                    "NFSv4 state changed each time it was read, for {} s; the list may be incomplete",
                    SNAPSHOT_TIMEOUT.as_secs()
                ));
                Exit::Done
            }
            Nfs4Listing::Unknown { reason } => {
                output::note(format_args!("cannot read NFSv4 state: {reason}"));
                match nfs {
                    Some(NfsVersion::V4) => Exit::Unsupported,
                    _ => Exit::Done,
                }
            }
            _ => Exit::Done,
        }
    }
}

/// A row for each range of a lock, one for any other state. A lock's state that has
/// outlived its last range has none.
pub(super) fn state_rows(listed: &ListedState) -> Vec<[String; 10]> {
    let line = &listed.line;
    let row = |id: &RowId, what: String, range: String| {
        [
            line.client.vips_text(),
            line.client.client.to_string(),
            line.client.client_name.to_string(),
            format!("4.{}", line.client.minor),
            "-".to_owned(),
            what,
            range,
            "-".to_owned(),
            id.to_string(),
            line.file_text(),
        ]
    };
    match line.kind {
        Kind::Lock => (line.ranges.iter().zip(&listed.ids))
            .map(|(range, id)| row(id, format!("lock {}", range.mode), range.range.to_string()))
            .collect(),
        _ => (listed.ids.iter())
            .map(|id| row(id, line.what(), "-".to_owned()))
            .collect(),
    }
}

pub(super) fn waiter_row(Row { id, line }: &Row<WaiterLine4>) -> [String; 10] {
    [
        line.client.vips_text(),
        line.client.client.to_string(),
        line.client.client_name.to_string(),
        format!("4.{}", line.client.minor),
        "-".to_owned(),
        format!("waits {}", line.mode),
        line.range.to_string(),
        "-".to_owned(),
        id.to_string(),
        behind(line.file.to_string(), &line.behind),
    ]
}

/// The file, and the first whose lock there is waited for.
pub(super) fn behind(file: String, holders: &[Holder]) -> String {
    match holders {
        [] => file,
        [one] => format!("{file} behind {one}"),
        [first, rest @ ..] => format!("{file} behind {first} and {} more", rest.len()),
    }
}
