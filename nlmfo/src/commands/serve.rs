//! `nlmfo serve`: keeps the client book of the VIPs that this node serves.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use tokio::time::interval;

use super::require_root;
use crate::causes::chain;
use crate::cli::ServeArgs;
use crate::exit::{Exit, Failure};
use crate::foreign::Shown;
use crate::interrupt::Interrupts;
use crate::kernel::{self, lockd, netns};
use crate::notify::book::{self, BookError, Client};
use crate::notify::books::Books;
use crate::notify::state_dir::StateDir;
use crate::observe::monitor::Monitored;
use crate::observe::programs::{ObserveError, Programs};
use crate::observe::snapshot::Snapshots;
use crate::observe::table::HostInfo;
use crate::{output, runtime};

/// Time between two attempts to write clients to the book, and between two checks of lockd.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum time for an exact snapshot at the start.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(args: &ServeArgs) -> Result<Exit, Failure> {
    require_root()?;
    runtime::run(serve(args)).context("starting the asynchronous runtime")?
}

async fn serve(args: &ServeArgs) -> Result<Exit, Failure> {
    let mut interrupts = Interrupts::listen().context("listening for signals")?;
    let loaded = lockd::incarnation();
    let layout = kernel::layout::load().map_err(ObserveError::from)?;
    let mut snapshots = Snapshots::attach(Programs::load(&layout)?)?;
    let mut monitored = Monitored::attach(snapshots.programs())?;
    let mut service = Service::new(args)?;
    // Who came before the probe did.
    let mut all_seen = service.see_holders(&mut snapshots)?;
    let folder = StateDir::new(&args.state.state_dir).path().shown();
    output::report(None, |out| writeln!(out, "recording clients in {folder}"));
    let mut look = interval(POLL_INTERVAL);
    loop {
        service.flush();
        tokio::select! {
            hosts = monitored.next() => service.see(hosts?.iter()),
            _ = look.tick() => {
                service.report_dropped(monitored.dropped()?);
                if !all_seen {
                    all_seen = service.see_holders(&mut snapshots)?;
                }
                if lockd::incarnation() != loaded {
                    let error = anyhow!(
                        "lockd was unloaded: start `nlmfo serve` again once nfsd runs; the client book is kept"
                    );
                    return Err(Failure::new(Exit::Unsupported, error));
                }
            }
            () = interrupts.next() => break,
        }
    }
    service.flush();
    Ok(Exit::Done)
}

struct Service {
    books: Books,
    /// Only these VIPs; all if there are none.
    only: Vec<IpAddr>,
    netns: u32,
    /// What was said last of a VIP's book that cannot be written.
    said: BTreeMap<IpAddr, String>,
    dropped: u64,
}

impl Service {
    fn new(args: &ServeArgs) -> Result<Self, Failure> {
        let netns = netns::network().context("reading this network namespace's number")?;
        Ok(Service {
            books: Books::new(StateDir::new(&args.state.state_dir), netns::node()),
            only: args.vip.clone(),
            netns: netns.inode as u32,
            said: BTreeMap::new(),
            dropped: 0,
        })
    }

    /// Whoever holds locks now; false if they changed all the time, and some may be missing.
    fn see_holders(&mut self, snapshots: &mut Snapshots) -> Result<bool, Failure> {
        let snapshot = snapshots.take(None, SNAPSHOT_TIMEOUT)?;
        let holders = snapshot.table.active_hosts().into_iter();
        self.see(holders.map(|id| snapshot.table.host(id)));
        Ok(snapshot.is_exact())
    }

    fn see<'a>(&mut self, hosts: impl Iterator<Item = &'a HostInfo>) {
        let now = book::now();
        for host in hosts {
            let vip = host.key.vip;
            let is_wanted = self.only.is_empty() || self.only.contains(&vip);
            if host.key.netns != self.netns || !is_wanted {
                continue;
            }
            if !self.books.see(vip, Client::seen(host, now)) {
                output::note(format_args!(
                    "{vip}: queue full, client {} not recorded",
                    host.key.client
                ));
            }
        }
    }

    /// Notes what can be noted, and says what cannot, once.
    fn flush(&mut self) {
        for flushed in self.books.flush() {
            let vip = flushed.vip;
            let Some(error) = flushed.error else {
                if self.said.remove(&vip).is_some() {
                    output::note(format_args!(
                        "{vip}: {} delayed clients recorded",
                        flushed.noted
                    ));
                }
                continue;
            };
            let is_gone = matches!(error, BookError::Owned { .. })
                && netns::has_address(vip).is_ok_and(|has| !has);
            if is_gone {
                // It moved while its last clients were on their way to the book.
                self.books.give_up(vip);
                self.said.remove(&vip);
                continue;
            }
            let text = chain(&error);
            if self.said.get(&vip) != Some(&text) {
                output::note(format_args!("{vip}: cannot record clients yet: {text}"));
                self.said.insert(vip, text);
            }
        }
    }

    fn report_dropped(&mut self, dropped: u64) {
        if dropped > self.dropped {
            output::note(format_args!(
                "{} events dropped, buffer full: these clients are recorded when they lock again",
                dropped - self.dropped
            ));
            self.dropped = dropped;
        }
    }
}
