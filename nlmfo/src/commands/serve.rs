//! `nlmfo serve`: keeps the client book of the VIPs that this node serves; serves metrics and
//! reports events.

mod observer;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::future::pending;
use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, anyhow};
use sd_notify::NotifyState;
use tokio::time::interval;

use self::observer::Events;
use super::require_root;
use crate::causes::chain;
use crate::cli::{Listen, ServeArgs};
use crate::exit::{Exit, Failure};
use crate::failover::services::{self, look};
use crate::failover::whole::identity;
use crate::foreign::Shown;
use crate::interrupt::Interrupts;
use crate::kernel::preflight::{Capability, Check};
use crate::kernel::{self, lockd, netns};
use crate::metrics::Shared;
use crate::metrics::http::{Bound, Listener};
use crate::notify::book::{BookError, Client};
use crate::notify::books::Books;
use crate::notify::state_dir::StateDir;
use crate::observe::error::ObserveError;
use crate::observe::monitor::Monitored;
use crate::observe::programs::Programs;
use crate::observe::snapshot::Snapshots;
use crate::observe::table::HostInfo;
use crate::server::Server;
use crate::server::description::NODE;
use crate::times;
use crate::{output, runtime};

/// Time between two attempts to write clients to the book, and between two checks of lockd.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Time between two checks of rpcbind, statd and lockd.
const SERVICES_INTERVAL: Duration = Duration::from_secs(30);

/// Maximum time for an exact snapshot at the start.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

pub fn run(args: &ServeArgs) -> Result<Exit, Failure> {
    require_root()?;
    let bound = bind(args)?;
    let events = Events::open(args.events.as_ref())?;
    let state = match args.server.as_deref() {
        None | Some(NODE) => StateDir::new(&args.state.state_dir),
        Some(name) => {
            let server = Server::named(name)?;
            server.enter()?;
            StateDir::new(server.state_dir())
        }
    };
    runtime::run(serve(args, &state, bound, events)).context("starting the asynchronous runtime")?
}

async fn serve(
    args: &ServeArgs,
    state: &StateDir,
    bound: Option<Bound>,
    events: Events,
) -> Result<Exit, Failure> {
    let mut interrupts = Interrupts::listen().context("listening for signals")?;
    let loaded = lockd::incarnation();
    let layout = kernel::layout::load().map_err(ObserveError::from)?;
    let mut snapshots = Snapshots::attach(Programs::load(&layout)?)?;
    let mut monitored = Monitored::attach(snapshots.programs())?;
    let mut service = Service::new(args, state)?;
    let shared = Shared::default();
    let listener = bound.map(Listener::new).transpose();
    let listener = listener.context("serving metrics")?;
    let observes = listener.is_some() || args.events.is_some();
    if observes {
        observer::start(args, state, events, &shared)?;
    }
    // For a crash of this node: the server must have the same scope on the next one.
    if matches!(args.server.as_deref(), None | Some(NODE))
        && let Ok(Some(identity)) = identity::of_server().await
    {
        identity::remember(state, &identity);
    }
    // Clients that locked before the probe was attached.
    let mut all_seen = service.see_holders(&mut snapshots)?;
    let folder = state.path().shown();
    output::report(None, |out| writeln!(out, "recording clients in {folder}"));
    // Only systemd waits for this.
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    let mut look = interval(POLL_INTERVAL);
    let scrapes = async {
        match &listener {
            Some(listener) => listener.serve(&shared).await,
            None => pending().await,
        }
    };
    let checks = async {
        match observes {
            true => check_services(args, state, &shared).await,
            false => pending().await,
        }
    };
    let (mut scrapes, mut checks) = (pin!(scrapes), pin!(checks));
    loop {
        service.flush();
        tokio::select! {
            () = &mut scrapes => {}
            () = &mut checks => {}
            hosts = monitored.next() => service.see(hosts?.iter()),
            _ = look.tick() => {
                let dropped = monitored.dropped()?;
                shared.change(|facts| facts.dropped = dropped);
                service.report_dropped(dropped);
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

/// The listener for scrapes, if there is one.
fn bind(args: &ServeArgs) -> Result<Option<Bound>, Failure> {
    let bound = match &args.listen {
        Some(Listen::Tcp(address)) => {
            Bound::tcp(*address).with_context(|| format!("cannot listen on {address}"))?
        }
        Some(Listen::Unix(path)) => {
            Bound::unix(path).with_context(|| format!("cannot listen on {}", path.shown()))?
        }
        None => return Ok(None),
    };
    Ok(Some(bound))
}

/// Keeps the metrics of the services up to date.
async fn check_services(args: &ServeArgs, state: &StateDir, shared: &Shared) {
    let mut check = interval(SERVICES_INTERVAL);
    loop {
        check.tick().await;
        let checks = services::decide(&look::facts(state).await, &services::Purpose::default());
        // The statd of a server of its own runs no callout.
        let is_of_server = |check: &Check| args.server.is_none() || check.name != "callout";
        let ready =
            checks
                .into_iter()
                .filter(is_of_server)
                .filter_map(|check| match check.capability {
                    Capability::Available => Some((check.name, true)),
                    Capability::Missing { .. } => Some((check.name, false)),
                    // It is the consequence of another one.
                    Capability::Unknown { .. } => None,
                });
        let ready = ready.collect();
        shared.change(|facts| facts.services = ready);
    }
}

struct Service {
    books: Books,
    /// Only these VIPs; all if there are none.
    only: Vec<IpAddr>,
    netns: u32,
    /// The last message about a VIP's book that cannot be written.
    said: BTreeMap<IpAddr, String>,
    dropped: u64,
}

impl Service {
    fn new(args: &ServeArgs, state: &StateDir) -> Result<Self, Failure> {
        let netns = netns::network().context("reading this network namespace's number")?;
        Ok(Service {
            books: Books::new(state.clone(), netns::node()),
            only: args.vip.clone(),
            netns: netns.inode as u32,
            said: BTreeMap::new(),
            dropped: 0,
        })
    }

    /// Records the clients that hold locks now; false if the locks kept changing, so that some may be
    /// missing.
    fn see_holders(&mut self, snapshots: &mut Snapshots) -> Result<bool, Failure> {
        let snapshot = snapshots.take(None, SNAPSHOT_TIMEOUT)?;
        let holders = snapshot.table.active_hosts().into_iter();
        self.see(holders.map(|id| snapshot.table.host(id)));
        Ok(snapshot.is_exact())
    }

    fn see<'a>(&mut self, hosts: impl Iterator<Item = &'a HostInfo>) {
        let now = times::now();
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

    /// Records the clients that can be recorded. Reports once those that cannot.
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
                // The VIP moved before its last clients were recorded.
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
