//! `nlmfo notify`: notify the clients of one VIP.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::IpAddr;

use anyhow::{Context, anyhow};

use super::require_root;
use crate::cli::NotifyArgs;
use crate::exit::{Exit, Failure};
use crate::failover::record::Record;
use crate::interrupt::{self, Interrupts};
use crate::kernel::netns;
use crate::notify::book::Book;
use crate::notify::config::Config;
use crate::notify::names;
use crate::notify::number::{Claim, Numbers};
use crate::notify::state_dir::StateDir;
use crate::notify::tell::{self, Order, TellError};
use crate::{output, runtime};

pub fn run(args: &NotifyArgs) -> Result<Exit, Failure> {
    require_root()?;
    let vip = args.vip;
    let config = could_run(Config::read(args.names.config.as_deref()))?;
    let clients = clients(args)?;
    if !netns::has_address(vip).context("cannot read this node's addresses")? {
        return could_run(Err(TellError::NotHere(vip)));
    }
    let work = async {
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
        let mut interrupts = Interrupts::listen().context("cannot install signal handlers")?;
        // With a report of the clients notified so far.
        could_run(tell::run(&order, interrupts.next()).await)
    };
    let report = runtime::run(work).context("starting the asynchronous runtime")??;
    let interrupted = interrupt::came().filter(|_| !report.is_complete());
    let exit = match interrupted {
        Some(_) => Exit::NotConfirmed,
        None => report.exit(),
    };
    interrupt::work_is_done(exit as u8);
    match args.json {
        true => output::report_json(None, &report),
        false => output::report(None, |out| write!(out, "{report}")),
    }
    match interrupted {
        None => Ok(exit),
        Some(by) => {
            let error = anyhow!("interrupted by {by}; not all of the clients above were notified");
            Err(Failure::new(exit, error))
        }
    }
}

/// The named clients and those of the VIP in the record; without both, those in the VIP's book.
fn clients(args: &NotifyArgs) -> Result<Vec<IpAddr>, Failure> {
    let mut clients: BTreeSet<IpAddr> = args.client.iter().copied().collect();
    if let Some(path) = &args.record {
        let record = could_run(Record::read(path))?;
        if !record.vips.contains(&args.vip) {
            let (path, vip) = (path.display(), args.vip);
            let error = anyhow!(
                "the release record {path} does not cover {vip}, only {:?}",
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
                "no client book of {vip} in {path}: run `nlmfo serve`, or name the clients with --client \
                 or --record"
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
