//! `nlmfo clients`: the clients of each VIP, from the client book, lockd and nfsd.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde::Serialize;

use super::nfs4_clients::Nfs4Clients;
use super::{everywhere, table};
use crate::cli::ClientsArgs;
use crate::exit::{Exit, Failure};
use crate::foreign::{Name, Shown};
use crate::kernel::{self, lockd, netns};
use crate::notify::book::writer::Writer;
use crate::notify::book::{Book, BookError, Client, Key, Owner, ReadBook};
use crate::notify::sm;
use crate::notify::state_dir::StateDir;
use crate::observe::error::ObserveError;
use crate::observe::programs::Programs;
use crate::observe::snapshot::Snapshots;
use crate::observe::table::LockTable;
use crate::output;
use crate::server::Server;
use crate::server::description::NODE;
use crate::times;

/// Maximum time for an exact snapshot while locks change.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(args: &ClientsArgs) -> Result<Exit, Failure> {
    let state = match args.filter.server.as_deref() {
        // Its book, if there is one, is where its notifications look it up.
        Some(name) if name != NODE => {
            let server = Server::named(name).map_err(anyhow::Error::from)?;
            StateDir::new(server.state_dir())
        }
        _ => StateDir::new(&args.state.state_dir),
    };
    if let Some(folder) = &args.import {
        return import(args, &state, folder);
    }
    if let Some(folder) = &args.export {
        return export(args, &state, folder);
    }
    if let Some(client) = args.forget {
        return forget(args, &state, client);
    }
    if !args.book
        && let Some(exit) = everywhere::list(args.filter.server.as_deref(), args.json, None)?
    {
        return Ok(exit);
    }
    list(args, &state)
}

/// The JSON of `nlmfo clients`.
#[derive(Serialize)]
struct Listing {
    schema: &'static str,
    /// Whether lockd was asked too.
    live: bool,
    vips: Vec<VipClients>,
    /// NFSv4 clients, which have no book.
    nfs4: Nfs4Clients,
}

#[derive(Serialize)]
struct VipClients {
    vip: IpAddr,
    /// The owner of the book; null without a book.
    owner: Option<Owner>,
    clients: Vec<ClientRow>,
    /// Damaged lines of the book.
    torn: Vec<String>,
}

#[derive(Serialize)]
struct ClientRow {
    #[serde(flatten)]
    client: Client,
    in_book: bool,
    /// Locks, waiting requests and shares that lockd has of it now; null if lockd was not asked.
    held: Option<usize>,
}

fn list(args: &ClientsArgs, state: &StateDir) -> Result<Exit, Failure> {
    let live = match args.book {
        true => None,
        false => live().unwrap_or_else(|Failure { error, .. }| {
            output::note(format_args!(
                "showing only the client book, lockd cannot be read: {error:#}"
            ));
            None
        }),
    };
    let (live, mut nfs4) = match live {
        Some((live, nfs4)) => (Some(live), nfs4),
        None => (None, Nfs4Clients::LeftOut),
    };
    if let Nfs4Clients::Unknown { reason } = &nfs4 {
        output::note(format_args!("cannot read NFSv4 clients: {reason}"));
    }
    nfs4.retain(|client| {
        args.vip.is_empty()
            || client.vip_unknown
            || args.vip.iter().any(|v| client.vips.contains(v))
    });
    let mut books = BTreeMap::new();
    let kept = state.vips().map_err(|source| book_error(state, source))?;
    for vip in kept {
        books.insert(vip, Book::read(state, vip).map_err(failure)?);
    }
    for vip in live.iter().flatten().map(|(vip, _)| *vip) {
        books.entry(vip).or_default();
    }
    let wanted = |vip: &IpAddr| args.vip.is_empty() || args.vip.contains(vip);
    let vips = (books.into_iter())
        .filter(|(vip, _)| wanted(vip))
        .map(|(vip, read)| VipClients::new(vip, read, live.as_ref()))
        .collect();
    let listing = Listing {
        schema: "nlmfo.clients/2",
        live: live.is_some(),
        vips,
        nfs4,
    };
    match args.json {
        true => output::list_json(&listing).map(|_| ())?,
        false => output::list(|out| listing.print(out))?,
    }
    Ok(Exit::Done)
}

/// What lockd has now: the NFSv3 clients of each VIP, and how much each holds.
type Live = BTreeMap<IpAddr, BTreeMap<Key, (Client, usize)>>;

/// None without root.
fn live() -> Result<Option<(Live, Nfs4Clients)>, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let netns =
        netns::network().context("cannot read the inode number of this network namespace")?;
    let layout = kernel::layout::load().map_err(ObserveError::from)?;
    let mut snapshots = Snapshots::attach(Programs::load(&layout)?)?;
    let table = snapshots.take(None, SNAPSHOT_TIMEOUT)?.table;
    let table = table.part(|host| host.netns == netns.inode as u32);
    let states = snapshots.take_states(netns.inode as u32, None, SNAPSHOT_TIMEOUT);
    Ok(Some((of_table(&table, times::now()), states.into())))
}

fn of_table(table: &LockTable, now: u64) -> Live {
    let mut live = Live::new();
    let holders = (table.locks.iter().map(|lock| lock.host))
        .chain(table.waiters.iter().map(|waiter| waiter.host))
        .chain(table.shares.iter().map(|share| share.host));
    for id in holders {
        let host = table.host(id);
        let client = Client::seen(host, now);
        let clients = live.entry(host.key.vip).or_default();
        clients.entry(client.key()).or_insert((client, 0)).1 += 1;
    }
    live
}

impl VipClients {
    /// `live` is what lockd has, if it was asked.
    fn new(vip: IpAddr, read: ReadBook, live: Option<&Live>) -> Self {
        let mut rows: BTreeMap<Key, ClientRow> = BTreeMap::new();
        for client in read.book.clients() {
            let row = ClientRow {
                client: client.clone(),
                in_book: true,
                held: live.map(|_| 0),
            };
            rows.insert(client.key(), row);
        }
        let here = live.and_then(|live| live.get(&vip));
        for (key, (client, held)) in here.into_iter().flatten() {
            let row = rows.entry(*key).or_insert_with(|| ClientRow {
                client: client.clone(),
                in_book: false,
                held: None,
            });
            row.client.last_seen = client.last_seen;
            row.held = Some(*held);
        }
        VipClients {
            vip,
            owner: read.owner,
            clients: rows.into_values().collect(),
            torn: read.torn,
        }
    }
}

impl Listing {
    fn print(&self, out: &mut impl Write) -> fmt::Result {
        let now = times::now();
        let rows = (self.vips.iter())
            .flat_map(|vip| vip.clients.iter().map(move |row| row.cells(vip.vip, now)))
            .chain(self.nfs4.rows());
        let headings = ["VIP", "CLIENT", "NAME", "VERSION", "HELD", "BOOK", "SEEN"];
        table::write(out, headings, rows)?;
        for vip in &self.vips {
            if let Some(owner) = &vip.owner {
                writeln!(
                    out,
                    "{}: client book of node {}, term {}",
                    vip.vip, owner.node, owner.term
                )?;
            }
            if !vip.torn.is_empty() {
                writeln!(
                    out,
                    "{}: {} damaged lines of the client book ignored: {}",
                    vip.vip,
                    vip.torn.len(),
                    vip.torn.join(", ")
                )?;
            }
        }
        Ok(())
    }
}

impl ClientRow {
    fn cells(&self, vip: IpAddr, now: u64) -> [String; 7] {
        let client = &self.client;
        let via = match (client.version, client.transport) {
            (Some(version), Some(transport)) => format!("{version}/{transport}"),
            _ => "-".to_owned(),
        };
        [
            vip.to_string(),
            client.address.to_string(),
            client.name.to_string(),
            via,
            self.held.map_or("?".to_owned(), |held| held.to_string()),
            if self.in_book { "yes" } else { "no" }.to_owned(),
            ago(now.saturating_sub(client.last_seen)),
        ]
    }
}

pub(super) fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..7200 => format!("{} min ago", seconds / 60),
        7200..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// The VIP of `--import`, `--export` and `--forget`.
fn one_vip(args: &ClientsArgs) -> Result<IpAddr, Failure> {
    match args.vip[..] {
        [vip] => Ok(vip),
        _ => Err(Failure::new(
            Exit::Usage,
            anyhow!("give exactly one --vip ADDRESS"),
        )),
    }
}

fn import(args: &ClientsArgs, state: &StateDir, folder: &Path) -> Result<Exit, Failure> {
    let vip = one_vip(args)?;
    let found = sm::read(folder)
        .with_context(|| format!("cannot read statd's directory {}", folder.display()))?;
    let now = times::now();
    let mut clients = Vec::new();
    for sm::Monitored { name, address } in &found {
        match address {
            // A client of the other address family: statd's list has both.
            Some(address) if address.is_ipv4() != vip.is_ipv4() => {
                output::note(format_args!(
                    "skipped {}: {address} cannot use {vip}",
                    name.shown()
                ));
            }
            Some(address) => clients.push(Client {
                address: *address,
                name: Name::from(name.as_os_str()),
                version: None,
                transport: None,
                first_seen: now,
                last_seen: now,
            }),
            None => output::note(format_args!(
                "skipped {}: the name does not resolve",
                name.shown()
            )),
        }
    }
    let mut writer = Writer::open(state, vip, &netns::node()).map_err(failure)?;
    writer.note(&clients).map_err(failure)?;
    let noted = clients.len();
    output::report(None, |out| {
        writeln!(
            out,
            "{vip}: added {noted} of {} clients to the client book",
            found.len()
        )
    });
    Ok(match clients.len() == found.len() {
        true => Exit::Done,
        false => Exit::Incomplete,
    })
}

fn export(args: &ClientsArgs, state: &StateDir, folder: &Path) -> Result<Exit, Failure> {
    let vip = one_vip(args)?;
    let read = Book::read(state, vip).map_err(failure)?;
    let written = sm::write(folder, read.book.clients(), &netns::node())
        .with_context(|| format!("cannot write to {}", folder.display()))?;
    output::report(None, |out| {
        writeln!(out, "{vip}: wrote {written} clients to {}", folder.shown())
    });
    Ok(Exit::Done)
}

fn forget(args: &ClientsArgs, state: &StateDir, client: IpAddr) -> Result<Exit, Failure> {
    let vip = one_vip(args)?;
    let refused = |error| Err(Failure::new(Exit::CouldNotRun, error));
    let known = Book::read(state, vip).map_err(failure)?.book;
    if !known.clients().any(|known| known.address == client) {
        return refused(anyhow!("{client} is not in the client book of {vip}"));
    }
    // A client that holds a lock must be notified when the VIP moves.
    let holds = match lockd::is_loaded() {
        true => live().map(|live| live.map_or(0, |(live, _)| held_by(&live, vip, client))),
        false => Ok(0),
    };
    if let Ok(held @ 1..) = holds {
        return refused(anyhow!(
            "{client} has {held} locks, waiting requests or shares through {vip}, and would not \
             be told to reclaim them: it stays in the client book"
        ));
    }
    let mut writer = Writer::open(state, vip, &netns::node()).map_err(failure)?;
    writer.forget(client).map_err(failure)?;
    output::report(None, |out| {
        writeln!(out, "{vip}: removed {client} until it locks again")
    });
    Ok(match holds {
        Ok(_) => Exit::Done,
        Err(Failure { error, .. }) => {
            output::note(format_args!(
                "cannot tell whether {client} holds locks through {vip}: {error:#}"
            ));
            Exit::NotConfirmed
        }
    })
}

/// How much a client has through a VIP, over all transports and versions.
fn held_by(live: &Live, vip: IpAddr, client: IpAddr) -> usize {
    let clients = live.get(&vip).into_iter().flatten();
    let of_client = clients.filter(|((address, ..), _)| *address == client);
    of_client.map(|(_, (_, held))| held).sum()
}

fn failure(error: BookError) -> Failure {
    Failure::new(Exit::CouldNotRun, error)
}

fn book_error(state: &StateDir, source: io::Error) -> Failure {
    failure(BookError::File {
        path: state.path().to_owned(),
        source,
    })
}
