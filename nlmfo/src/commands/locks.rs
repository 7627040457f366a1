//! `nlmfo locks`: who holds which lock through which address.

use std::fmt::{self, Write};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use serde::{Serialize, Serializer};

use super::{require_root, table};
use crate::cli::LocksArgs;
use crate::exit::{Exit, Failure};
use crate::kernel;
use crate::kernel::path::PathFinder;
use crate::observe::describe::{Described, LockLine, ShareLine, WaiterLine};
use crate::observe::host::Host;
use crate::observe::programs::{ObserveError, Programs};
use crate::observe::snapshot::{Snapshot, Snapshots};
use crate::output;

/// How long to read again while locks change underfoot.
const PATIENCE: Duration = Duration::from_secs(5);

/// Directory entries that may be read to find files whose name the kernel does not
/// know.
const SEARCH_LIMIT: usize = 100_000;

pub fn run(args: &LocksArgs) -> Result<Exit, Failure> {
    require_root()?;
    let netns = kernel::netns::network()
        .context("reading this network namespace's number")?
        .inode as u32;
    let layout = kernel::layout::load().map_err(ObserveError::from)?;
    let mut snapshots = Snapshots::attach(Programs::load(&layout)?)?;
    // One VIP: only its own locks need to hold still.
    let only = match args.vip[..] {
        [vip] => Some(vip),
        _ => None,
    };
    let mut snapshot = snapshots.take(only, PATIENCE)?;
    snapshot.table = snapshot.table.part(|host| wanted(args, netns, host));

    let mut paths =
        PathFinder::new(SEARCH_LIMIT).context("reading the list of mounted filesystems")?;
    let described = Described::new(&snapshot.table, &mut paths);
    if args.json {
        output::list_json(&Listing::new(&snapshot, &described))?;
    } else {
        output::list(|out| print_text(out, &snapshot, &described))?;
    }
    if !snapshot.is_exact() {
        output::note(format_args!(
            "locks on {} files changed each time they were read, for {} s; their locks may be \
             incomplete",
            snapshot.unsettled.len(),
            PATIENCE.as_secs()
        ));
    }
    Ok(Exit::Done)
}

fn wanted(args: &LocksArgs, netns: u32, host: &Host) -> bool {
    let any = |wanted: &[IpAddr], ip| wanted.is_empty() || wanted.contains(&ip);
    (args.all_netns || host.netns == netns)
        && any(&args.vip, host.vip)
        && any(&args.client, host.client)
}

/// The JSON of `nlmfo locks`. The lines are made while they are written.
#[derive(Serialize)]
struct Listing<'a> {
    schema: &'static str,
    /// Whether two walks of the kernel's lists agreed on every lock.
    exact: bool,
    /// How often the lists were read.
    passes: u32,
    took_ms: f64,
    #[serde(serialize_with = "lock_lines")]
    locks: &'a Described<'a>,
    #[serde(serialize_with = "waiter_lines")]
    waiters: &'a Described<'a>,
    #[serde(serialize_with = "share_lines")]
    shares: &'a Described<'a>,
}

impl<'a> Listing<'a> {
    fn new(snapshot: &Snapshot, described: &'a Described<'a>) -> Self {
        Listing {
            schema: "nlmfo.locks/1",
            exact: snapshot.is_exact(),
            passes: snapshot.passes,
            took_ms: snapshot.took.as_secs_f64() * 1e3,
            locks: described,
            waiters: described,
            shares: described,
        }
    }
}

fn lock_lines<S: Serializer>(described: &Described, out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(described.locks())
}

fn waiter_lines<S: Serializer>(described: &Described, out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(described.waiters())
}

fn share_lines<S: Serializer>(described: &Described, out: S) -> Result<S::Ok, S::Error> {
    out.collect_seq(described.shares())
}

fn print_text(out: &mut impl Write, snapshot: &Snapshot, described: &Described) -> fmt::Result {
    let rows = (described.locks().map(lock_row))
        .chain(described.waiters().map(waiter_row))
        .chain(described.shares().map(share_row));
    let headings = [
        "VIP", "CLIENT", "NAME", "NLM", "WHAT", "RANGE", "SVID", "FILE",
    ];
    table::write(out, headings, rows)?;
    let table = &snapshot.table;
    writeln!(
        out,
        "{} locks, {} waiters, {} shares",
        table.locks.len(),
        table.waiters.len(),
        table.shares.len()
    )
}

fn lock_row(line: LockLine) -> [String; 8] {
    let what = line.mode.to_string();
    row(line, what)
}

fn waiter_row(line: WaiterLine) -> [String; 8] {
    let state = if line.granted { "granted" } else { "waits" };
    let what = format!("{state} {}", line.lock.mode);
    row(line.lock, what)
}

fn row(line: LockLine, what: String) -> [String; 8] {
    [
        line.host.vip.to_string(),
        line.host.client.to_string(),
        line.host.client_name,
        format!("{}/{}", line.host.version, line.host.transport),
        what,
        line.range.to_string(),
        line.svid.to_string(),
        line.file.to_string(),
    ]
}

fn share_row(line: ShareLine) -> [String; 8] {
    [
        line.host.vip.to_string(),
        line.host.client.to_string(),
        line.host.client_name,
        format!("{}/{}", line.host.version, line.host.transport),
        format!("share {} deny {}", line.access, line.deny),
        "-".to_owned(),
        "-".to_owned(),
        line.file.to_string(),
    ]
}
