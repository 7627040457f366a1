//! `nlmfo locks`: locks, waiters and NFSv4 state with their VIP and client.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use serde::{Serialize, Serializer};

use super::{everywhere, require_root, table};
use crate::causes::chain;
use crate::cli::{LocksArgs, NfsVersion};
use crate::exit::{Exit, Failure};
use crate::failover::evidence::{self, Item};
use crate::failover::targeted::id::RowId;
use crate::failover::targeted::on::On;
use crate::failover::targeted::report::Row;
use crate::failover::targeted::select::ids_of;
use crate::foreign::Shown;
use crate::kernel;
use crate::kernel::path::PathFinder;
use crate::observe::describe::{Described, LockLine, ShareLine, WaiterLine};
use crate::observe::host::Host;
use crate::observe::programs::{ObserveError, Programs};
use crate::observe::snapshot::{Snapshot, Snapshots};
use crate::observe::states::Kind;
use crate::observe::states::describe::{ClientLine4, StateLine, describe};
use crate::observe::states::take::{StateSnapshot, StatesError};
use crate::observe::table::LockTable;
use crate::output;
use crate::server::description::NODE;
use crate::times::milliseconds;

/// Maximum time for an exact snapshot while locks change.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

/// Directory entries that may be read to find files whose name the kernel does not
/// know.
const SEARCH_LIMIT: usize = 100_000;

pub fn run(args: &LocksArgs) -> Result<Exit, Failure> {
    require_root()?;
    let path = args.file.as_deref().or(args.filesystem.as_deref());
    // It sees those of all namespaces from here.
    let asked = match args.all_netns {
        true => Some(NODE),
        false => args.filter.server.as_deref(),
    };
    if let Some(exit) = everywhere::list(asked, args.json, path)? {
        return Ok(exit);
    }
    let netns = kernel::netns::network()
        .context("cannot read the inode number of this network namespace")?
        .inode as u32;
    let layout = kernel::layout::load().map_err(ObserveError::from)?;
    let mut snapshots = Snapshots::attach(Programs::load(&layout)?)?;
    // One VIP: only its own locks need to hold still.
    let only = match args.vip[..] {
        [vip] => Some(vip),
        _ => None,
    };
    let on = asked_on(args)?;
    let snapshot = match args.nfs {
        Some(NfsVersion::V4) => None,
        _ => {
            let mut snapshot = snapshots.take(only, SNAPSHOT_TIMEOUT)?;
            narrow(&mut snapshot.table, args, netns, on);
            Some(snapshot)
        }
    };
    let states = match args.nfs {
        Some(NfsVersion::V3) => None,
        _ if args.waiters => None,
        _ => Some(snapshots.take_states(netns, only, SNAPSHOT_TIMEOUT)),
    };

    let mut paths =
        PathFinder::new(SEARCH_LIMIT).context("cannot read the list of mounted filesystems")?;
    let nothing = LockTable::default();
    let table = snapshot.as_ref().map_or(&nothing, |seen| &seen.table);
    let described = Described::new(table, &mut paths);
    let nfs4 = Nfs4Listing::new(&states, args, on, &mut paths);
    let lines = Lines {
        table,
        described: &described,
    };
    let listing = Listing {
        schema: "nlmfo.locks/2",
        exact: snapshot.as_ref().is_none_or(Snapshot::is_exact),
        passes: snapshot.as_ref().map_or(0, |seen| seen.passes),
        took_ms: snapshot
            .as_ref()
            .map_or(0.0, |seen| milliseconds(seen.took)),
        locks: lines,
        waiters: lines,
        shares: lines,
        nfs4: &nfs4,
    };
    match args.json {
        true => output::list_json(&listing).map(|_| ())?,
        false => output::list(|out| print_text(out, lines, &nfs4, args))?,
    }
    snapshot.iter().for_each(note_gaps);
    Ok(nfs4.exit(args.nfs))
}

/// Says what the list may lack.
fn note_gaps(snapshot: &Snapshot) {
    let unsettled = snapshot.unsettled.len();
    if unsettled > 0 {
        output::note(format_args!(
            "locks on {unsettled} files changed each time they were read, for {} s; the list may be \
             incomplete for these files",
            SNAPSHOT_TIMEOUT.as_secs()
        ));
    }
    let orphans = snapshot.orphans;
    if orphans > 0 {
        output::note(format_args!(
            "{orphans} locks are not listed: each time their host was gone when it was looked up"
        ));
    }
}

/// What state must be on.
fn asked_on(args: &LocksArgs) -> Result<On, Failure> {
    let Some(path) = args.file.as_ref().or(args.filesystem.as_ref()) else {
        return Ok(On::Anything);
    };
    let on = match args.file {
        Some(_) => On::file(path),
        None => On::filesystem_of(path),
    };
    Ok(on.with_context(|| format!("cannot access {}", path.shown()))?)
}

/// Leaves of the table what was asked for.
fn narrow(table: &mut LockTable, args: &LocksArgs, netns: u32, on: On) {
    let any = |wanted: &[IpAddr], ip| wanted.is_empty() || wanted.contains(&ip);
    *table = table.part(|host: &Host| {
        (args.all_netns || host.netns == netns)
            && any(&args.vip, host.vip)
            && any(&args.client, host.client)
    });
    let files: Vec<bool> = table.files.iter().map(|file| on.has(file)).collect();
    table.waiters.retain(|waiter| files[waiter.file.index()]);
    table
        .locks
        .retain(|lock| !args.waiters && files[lock.file.index()]);
    table
        .shares
        .retain(|share| !args.waiters && files[share.file.index()]);
}

/// NFSv4's part.
#[derive(Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
enum Nfs4Listing {
    /// It was not asked for.
    LeftOut,
    /// It could not be read.
    Unknown { reason: String },
    Read {
        /// Whether nothing changed while it was read.
        exact: bool,
        passes: u32,
        took_ms: f64,
        /// Those whose VIPs and addresses are wanted, also without state.
        clients: Vec<ClientLine4>,
        states: Vec<ListedState>,
    },
}

/// A state with the ID of each of its rows: one for each range of a lock, or one.
#[derive(Serialize)]
struct ListedState {
    ids: Vec<RowId>,
    #[serde(flatten)]
    line: StateLine,
}

impl Nfs4Listing {
    fn new(
        seen: &Option<Result<StateSnapshot, StatesError>>,
        args: &LocksArgs,
        on: On,
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
                && (args.client.is_empty() || args.client.contains(&client.address))
        });
        (table.states).retain(|state| match (&state.file, on) {
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
        }
    }

    fn states(&self) -> &[ListedState] {
        match self {
            Nfs4Listing::Read { states, .. } => states,
            _ => &[],
        }
    }

    /// Says what keeps the listing from being whole; a lack only if NFSv4 alone is wanted.
    fn exit(&self, nfs: Option<NfsVersion>) -> Exit {
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

/// The JSON of `nlmfo locks`. The lines of NFSv3 are made while they are written.
#[derive(Serialize)]
struct Listing<'a> {
    schema: &'static str,
    /// Whether two walks of the kernel's lists agreed on every lock.
    exact: bool,
    /// How often the lists were read; 0 if they were not asked for.
    passes: u32,
    took_ms: f64,
    #[serde(serialize_with = "lock_lines")]
    locks: Lines<'a>,
    #[serde(serialize_with = "waiter_lines")]
    waiters: Lines<'a>,
    #[serde(serialize_with = "share_lines")]
    shares: Lines<'a>,
    nfs4: &'a Nfs4Listing,
}

/// NFSv3's part, each line with its ID.
#[derive(Clone, Copy)]
struct Lines<'a> {
    table: &'a LockTable,
    described: &'a Described<'a>,
}

impl<'a> Lines<'a> {
    fn locks(self) -> impl Iterator<Item = Row<LockLine>> + Clone {
        rows(evidence::locks(self.table), self.described.locks())
    }

    fn waiters(self) -> impl Iterator<Item = Row<WaiterLine>> + Clone {
        rows(evidence::waiters(self.table), self.described.waiters())
    }

    fn shares(self) -> impl Iterator<Item = Row<ShareLine>> + Clone {
        rows(evidence::shares(self.table), self.described.shares())
    }
}

fn rows<T>(
    items: impl Iterator<Item = Item> + Clone,
    lines: impl Iterator<Item = T> + Clone,
) -> impl Iterator<Item = Row<T>> + Clone {
    (items.zip(lines)).map(|(item, line)| Row {
        id: RowId::of(&item),
        line,
    })
}

fn lock_lines<S: Serializer>(lines: &Lines, out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(lines.locks())
}

fn waiter_lines<S: Serializer>(lines: &Lines, out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(lines.waiters())
}

fn share_lines<S: Serializer>(lines: &Lines, out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(lines.shares())
}

fn print_text(
    out: &mut impl Write,
    lines: Lines,
    nfs4: &Nfs4Listing,
    args: &LocksArgs,
) -> fmt::Result {
    let rows = (lines.locks().map(lock_row))
        .chain(lines.waiters().map(waiter_row))
        .chain(lines.shares().map(share_row))
        .chain(nfs4.states().iter().flat_map(state_rows));
    let headings = [
        "VIP", "CLIENT", "NAME", "NFS", "NLM", "WHAT", "RANGE", "SVID", "ID", "FILE",
    ];
    table::write(out, headings, rows)?;
    if args.nfs != Some(NfsVersion::V4) {
        writeln!(
            out,
            "NFSv3: {} locks, {} waiters, {} shares",
            lines.table.locks.len(),
            lines.table.waiters.len(),
            lines.table.shares.len()
        )?;
    }
    match nfs4 {
        Nfs4Listing::LeftOut => Ok(()),
        Nfs4Listing::Unknown { .. } => writeln!(out, "NFSv4: unknown"),
        Nfs4Listing::Read { states, .. } => {
            let of = |kind| {
                states
                    .iter()
                    .filter(|state| state.line.kind == kind)
                    .count()
            };
            let locks: usize = states.iter().map(|state| state.line.ranges.len()).sum();
            writeln!(
                out,
                "NFSv4: {} opens, {locks} locks, {} delegations, {} layouts",
                of(Kind::Open),
                of(Kind::Delegation),
                of(Kind::Layout)
            )
        }
    }
}

fn lock_row(row: Row<LockLine>) -> [String; 10] {
    let what = format!("lock {}", row.line.mode);
    cells(row.id, row.line, what)
}

fn waiter_row(row: Row<WaiterLine>) -> [String; 10] {
    let state = if row.line.granted { "granted" } else { "waits" };
    let what = format!("{state} {}", row.line.lock.mode);
    cells(row.id, row.line.lock, what)
}

fn cells(id: RowId, line: LockLine, what: String) -> [String; 10] {
    [
        line.host.vip.to_string(),
        line.host.client.to_string(),
        line.host.client_name.to_string(),
        "3".to_owned(),
        format!("{}/{}", line.host.version, line.host.transport),
        what,
        line.range.to_string(),
        line.svid.to_string(),
        id.to_string(),
        line.file.to_string(),
    ]
}

fn share_row(Row { id, line }: Row<ShareLine>) -> [String; 10] {
    [
        line.host.vip.to_string(),
        line.host.client.to_string(),
        line.host.client_name.to_string(),
        "3".to_owned(),
        format!("{}/{}", line.host.version, line.host.transport),
        format!("share {} deny {}", line.access, line.deny),
        "-".to_owned(),
        "-".to_owned(),
        id.to_string(),
        line.file.to_string(),
    ]
}

/// A row for each range of a lock, one for any other state. A lock's state that has
/// outlived its last range has none.
fn state_rows(listed: &ListedState) -> Vec<[String; 10]> {
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
