//! `nlmfo notify`: tell a VIP's clients to reclaim.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use anyhow::{Context, anyhow};
use tokio::signal::unix::{SignalKind, signal};

use super::require_root;
use crate::cli::NotifyArgs;
use crate::exit::{Exit, Failure};
use crate::failover::record::Record;
use crate::kernel::netns;
use crate::notify::book::Book;
use crate::notify::config::Config;
use crate::notify::names;
use crate::notify::number::{Claim, Numbers};
use crate::notify::state_dir::StateDir;
use crate::notify::tell::{self, Order, TellError};
use crate::output;

pub fn run(args: &NotifyArgs) -> Result<Exit, Failure> {
    require_root()?;
    let vip = args.vip;
    let config = could_run(Config::read(args.config.as_deref()))?;
    let clients = clients(args)?;
    if !netns::has_address(vip).context("reading this node's addresses")? {
        return could_run(Err(TellError::NotHere(vip)));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime")?;
    let report = runtime.block_on(async {
        let names = names::of(vip, &args.name, &config).await;
        let numbers = Numbers::new(&StateDir::new(&args.state.state_dir));
        let claim = Claim::new(&[vip], netns::node(), None);
        let order = Order {
            vip,
            clients,
            names,
            state: could_run(numbers.claim(&claim))?,
            deadline: Some(args.deadline),
        };
        let mut terminate =
            signal(SignalKind::terminate()).context("listening for the signal to terminate")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("listening for ctrl-C")?;
        // With a report of who is told so far.
        let stop = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        could_run(tell::run(&order, stop).await)
    })?;
    match args.json {
        true => output::report_json(None, &report),
        false => output::report(None, |out| write!(out, "{report}")),
    }
    Ok(report.exit())
}

/// Everybody who is named, and everybody whom the record has as a client of the VIP; if
/// neither is given, everybody in the VIP's book.
fn clients(args: &NotifyArgs) -> Result<Vec<IpAddr>, Failure> {
    let mut clients: BTreeSet<IpAddr> = args.client.iter().copied().collect();
    if let Some(path) = &args.record {
        let record = could_run(Record::read(path))?;
        if !record.vips.contains(&args.vip) {
            let (path, vip) = (path.display(), args.vip);
            let error = anyhow!(
                "the record {path} is not of {vip}, but of {:?}",
                record.vips
            );
            return Err(Failure::new(Exit::CouldNotRun, error));
        }
        clients.extend(record.clients_of(args.vip));
    }
    if args.client.is_empty() && args.record.is_none() {
        let state = StateDir::new(&args.state.state_dir);
        let read = could_run(Book::read(&state, args.vip))?;
        if read.owner.is_none() {
            let (vip, path) = (args.vip, state.path().display());
            let error = anyhow!(
                "nobody has kept a client book of {vip} in {path}: run `nlmfo serve`, or name the \
                 clients with --client or --record"
            );
            return Err(Failure::new(Exit::CouldNotRun, error));
        }
        clients.extend(read.book.clients().map(|client| client.address));
    }
    Ok(clients.into_iter().collect())
}

fn could_run<T, E: Into<anyhow::Error>>(done: Result<T, E>) -> Result<T, Failure> {
    done.map_err(|error| Failure::new(Exit::CouldNotRun, error))
}
