//! `nlmfo locks`: locks, waiters and NFSv4 state with their VIP and client.

mod lines;
mod nfs4;

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use serde::{Serialize, Serializer};

use self::lines::lock_lines;
use self::nfs4::{Nfs4Listing, behind, state_rows};
use super::{everywhere, require_root, table};
use crate::cli::{LocksArgs, NfsVersion};
use crate::exit::{Exit, Failure};
use crate::failover::evidence::{self, Item};
use crate::failover::targeted::id::{RowId, RowIds};
use crate::failover::targeted::on::On;
use crate::failover::targeted::report::Row;
use crate::foreign::Shown;
use crate::kernel;
use crate::kernel::path::PathFinder;
use crate::observe::behind::{Holder, Holders};
use crate::observe::describe::{Described, LockLine, ShareLine, WaiterLine};
use crate::observe::error::ObserveError;
use crate::observe::host::Host;
use crate::observe::programs::Programs;
use crate::observe::snapshot::{Snapshot, Snapshots};
use crate::observe::states::Kind;
use crate::observe::states::StateTable;
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
    // It lists the locks of all namespaces from here.
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
    // With one VIP, the snapshot need only be exact for its locks.
    let only = match args.vip[..] {
        [vip] => Some(vip),
        _ => None,
    };
    let on = asked_on(args)?;
    let mut snapshot = match args.nfs {
        Some(NfsVersion::V4) => None,
        _ => Some(snapshots.take(only, SNAPSHOT_TIMEOUT)?),
    };
    let states = match args.nfs {
        Some(NfsVersion::V3) => None,
        _ => Some(snapshots.take_states(netns, only, SNAPSHOT_TIMEOUT)),
    };
    let nlm = snapshot.as_ref().map(|seen| &seen.table);
    let nfs4 = states.as_ref().and_then(|seen| seen.as_ref().ok());
    let holders = holders(&mut snapshots, netns, nlm, nfs4.map(|seen| &seen.table));
    if let Some(snapshot) = &mut snapshot {
        narrow(&mut snapshot.table, args, netns, on);
    }

    let mut paths =
        PathFinder::new(SEARCH_LIMIT).context("cannot read the list of mounted filesystems")?;
    let nothing = LockTable::default();
    let table = snapshot.as_ref().map_or(&nothing, |seen| &seen.table);
    let described = Described::new(table, &mut paths);
    let nfs4 = Nfs4Listing::new(states.as_ref(), args, on, &holders, &mut paths);
    let lines = Lines {
        table,
        described: &described,
        holders: &holders,
    };
    let waiters_queued = kernel::locks::queues_requests(kernel::version());
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
        waiters_queued,
        nfs4: &nfs4,
    };
    match args.json {
        true => output::list_json(&listing).map(|_| ())?,
        false => output::list(|out| print_text(out, lines, &nfs4, args))?,
    }
    snapshot.iter().for_each(note_gaps);
    if args.waiters && !waiters_queued {
        output::note(
            "this kernel queues no requests of NFS clients on local filesystems: the clients ask again",
        );
    }
    Ok(nfs4.exit(args.nfs))
}

/// The holders of the locks that requests wait for, of both versions, regardless of the filters.
fn holders(
    snapshots: &mut Snapshots,
    netns: u32,
    nlm: Option<&LockTable>,
    nfs4: Option<&StateTable>,
) -> Holders {
    let waits = nlm.is_some_and(|table| !table.waiters.is_empty())
        || nfs4.is_some_and(|table| !table.waiters.is_empty());
    if !waits {
        return Holders::default();
    }
    let other = match nlm {
        Some(_) => None,
        None => (snapshots.take(None, SNAPSHOT_TIMEOUT).ok()).map(|seen| seen.table),
    };
    let other4 = match nfs4 {
        Some(_) => None,
        None => (snapshots.take_states(netns, None, SNAPSHOT_TIMEOUT).ok()).map(|seen| seen.table),
    };
    let (nlm, nfs4) = (nlm.or(other.as_ref()), nfs4.or(other4.as_ref()));
    let (nothing, nothing4) = (LockTable::default(), StateTable::default());
    let all = kernel::locks::held().unwrap_or_default();
    Holders::new(nlm.unwrap_or(&nothing), nfs4.unwrap_or(&nothing4), all)
}

/// Reports what may be missing in the list.
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

/// The file or filesystem that limits the list.
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

/// Keeps only the part of the table that was asked for.
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
    /// Whether this kernel queues requests on local filesystems: otherwise there are no waiters.
    waiters_queued: bool,
    nfs4: &'a Nfs4Listing,
}

/// NFSv3's part, each line with its ID.
#[derive(Clone, Copy)]
struct Lines<'a> {
    table: &'a LockTable,
    described: &'a Described<'a>,
    holders: &'a Holders,
}

/// A request and whose locks it waits for.
#[derive(Serialize)]
struct Waits {
    #[serde(flatten)]
    line: WaiterLine,
    behind: Vec<Holder>,
}

impl Lines<'_> {
    fn locks(self) -> impl Iterator<Item = Row<LockLine>> + Clone {
        rows(evidence::locks(self.table), self.described.locks())
    }

    fn waiters(self) -> impl Iterator<Item = Row<Waits>> + Clone {
        let lines =
            (self.table.waiters.iter().zip(self.described.waiters())).map(move |(waiter, line)| {
                Waits {
                    behind: match waiter.granted {
                        true => Vec::new(),
                        false => self.holders.of(self.table, waiter),
                    },
                    line,
                }
            });
        rows(evidence::waiters(self.table), lines)
    }

    fn shares(self) -> impl Iterator<Item = Row<ShareLine>> + Clone {
        rows(evidence::shares(self.table), self.described.shares())
    }
}

fn rows<T>(
    items: impl Iterator<Item = Item> + Clone,
    lines: impl Iterator<Item = T> + Clone,
) -> impl Iterator<Item = Row<T>> + Clone {
    let mut ids = RowIds::default();
    (items.zip(lines)).map(move |(item, line)| Row {
        id: ids.of(&item),
        line,
    })
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
        .chain(nfs4.states().iter().flat_map(state_rows))
        .chain(nfs4.waiters().iter().map(nfs4::waiter_row));
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
        Nfs4Listing::Read {
            states, waiters, ..
        } => {
            let of = |kind| {
                states
                    .iter()
                    .filter(|state| state.line.kind == kind)
                    .count()
            };
            let locks: usize = states.iter().map(|state| state.line.ranges.len()).sum();
            writeln!(
                out,
                "NFSv4: {} opens, {locks} locks, {} delegations, {} layouts, {} waiters",
                of(Kind::Open),
                of(Kind::Delegation),
                of(Kind::Layout),
                waiters.len()
            )
        }
    }
}

fn lock_row(row: Row<LockLine>) -> [String; 10] {
    let what = format!("lock {}", row.line.mode);
    cells(row.id, row.line, what)
}

fn waiter_row(Row { id, line: waits }: Row<Waits>) -> [String; 10] {
    let state = match waits.line.granted {
        true => "granted",
        false => "waits",
    };
    let what = format!("{state} {}", waits.line.lock.mode);
    let mut cells = cells(id, waits.line.lock, what);
    if let Some(file) = cells.last_mut() {
        *file = behind(std::mem::take(file), &waits.behind);
    }
    cells
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
