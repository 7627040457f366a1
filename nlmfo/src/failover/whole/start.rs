//! The takeover half: starts the server in the kernel's own grace, notifies the clients, follows what
//! comes back, and ends both grace periods once it is all back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::{info, warn};

use super::changes::{self, Configuration, Split};
use super::coverage::{Coverage, Part, are_reclaiming};
use super::filesystems::Filesystems;
use super::present::Held;
use super::report::{Ended, StartReport, VipNotified};
use super::stop::{self, stored};
use super::{Server, ServerError, fence, listed};
use crate::causes::chain;
use crate::failover::noted;
use crate::failover::notification::{Notification, Notifier, Settled};
use crate::failover::record::Record;
use crate::failover::tickle::tickle;
use crate::failover::watch::Watch;
use crate::kernel::grace::Grace;
use crate::kernel::nfsd::{Nfsd, NfsdError};
use crate::kernel::{exports, lockd, netns};
use crate::notify::config::Config;
use crate::notify::sm::Listed;
use crate::notify::state_dir::StateDir;
use crate::observe::states::Counts4;
use crate::output;
use crate::times::milliseconds;

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// How long nothing may have been reclaimed before grace is ended, once all of the record is back, if
/// clients of NFSv3 or 4.0 are recorded. Newer clients send `RECLAIM_COMPLETE`.
const QUIET: Duration = Duration::from_millis(500);

/// The same if NFSv4 clients could open and lock while the record was taken, so that more may
/// come back.
const UNFENCED_QUIET: Duration = Duration::from_secs(1);

/// The same if clients had delegations and did not get them back: they reclaim the locks behind
/// them, which nobody could record.
const HIDDEN_QUIET: Duration = Duration::from_secs(3);

/// Maximum time to read NFSv4 state again while it changes.
const READ_TIMEOUT: Duration = Duration::from_millis(500);

/// How much longer to notify clients once everything is back.
const LINGER: Duration = Duration::from_secs(2);

/// Maximum time until the kernel allows the end of its grace periods.
const END_TIMEOUT: Duration = Duration::from_secs(5);

/// How to take over.
#[derive(Clone, Debug)]
pub struct Plan {
    pub state: StateDir,
    /// The names that clients mount by.
    pub config: Config,
    /// NFSv4 clients could send nothing any more when the record was taken.
    pub fences_nfs4: bool,
    /// Maximum time to follow the reclaims.
    pub deadline: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the server was not started")]
    Server(#[source] ServerError),
    #[error("the server cannot be used by its clients")]
    Appear(#[source] ServerError),
    #[error(transparent)]
    Nfsd(#[from] NfsdError),
    #[error(transparent)]
    Lockd(#[from] lockd::LockdError),
    #[error(transparent)]
    Observe(#[from] crate::observe::error::ObserveError),
    #[error("reading this node's addresses and exports")]
    Node(#[source] std::io::Error),
}

/// A server that has been started.
#[derive(Debug)]
pub struct Begun {
    title: String,
    began: Instant,
    not_ready: Vec<String>,
    grace: Grace,
    /// statd's list.
    monitored: Vec<Listed>,
    notes: Vec<String>,
}

impl Begun {
    /// A server that an earlier run has started.
    ///
    /// # Errors
    /// If its grace cannot be read.
    pub fn earlier(server: &impl Server) -> Result<Self, StartError> {
        Ok(Begun {
            title: server.title(),
            began: Instant::now(),
            not_ready: Vec::new(),
            grace: Grace::read::<StartError>()?,
            monitored: listed::read(&server.monitored()),
            notes: Vec::new(),
        })
    }

    pub fn grace(&self) -> Grace {
        self.grace
    }
}

/// Starts the server, reads its grace, and brings its addresses up. With `prepare`, first starts what
/// must run before. `observe` is called before the addresses are up: a client says only once what it
/// gives up.
pub async fn begin<T>(
    server: &impl Server,
    prepare: bool,
    observe: impl FnOnce(Grace) -> T,
) -> Result<(Begun, T), StartError> {
    let missing = match prepare {
        true => server.prepare().await,
        false => Vec::new(),
    };
    let not_ready = missing.into_iter().map(|one| one.reason).collect();
    // Before it starts: lockd removes what it unmonitors, and sm-notify what it has notified.
    let monitored = listed::read(&server.monitored());
    let began = Instant::now();
    server.start().await.map_err(StartError::Server)?;
    let grace = Grace::read::<StartError>()?;
    if let Err(error) = fence::lower().await {
        warn!(
            error = chain(&error),
            "lock calls are dropped until the fence is over"
        );
    }
    if let Err(error) = fence::unmute().await {
        warn!(error = chain(&error));
    }
    let observed = observe(grace);
    let mut notes = Vec::new();
    // Even without grace: otherwise sm-notify would later notify clients that have locked since.
    if let Err(error) = server.notify_at_boot(&monitored).await {
        notes.push(format!(
            "sm-notify may still notify clients, whose reclaims are then refused: {}",
            chain(&error)
        ));
    }
    server.appear().await.map_err(StartError::Appear)?;
    let begun = Begun {
        title: server.title(),
        began,
        not_ready,
        grace,
        monitored,
        notes,
    };
    Ok((begun, observed))
}

/// Notifies the clients, follows the reclaims and ends grace; if grace is already over, only compares.
/// `watch` must have followed what clients give up since the start.
pub async fn follow(
    plan: &Plan,
    begun: Begun,
    watch: &mut Watch,
) -> Result<(StartReport, Instant), StartError> {
    let mut notes = begun.notes;
    let record = readable(&plan.state, &mut notes);
    let mut report = StartReport {
        server: begun.title,
        has_record: record.is_some(),
        recorded_at: record.as_ref().map(|record| record.taken_at),
        not_ready: begun.not_ready,
        grace: begun.grace,
        changes: Vec::new(),
        expected: 0,
        missing: Part::default(),
        given_up: Part::default(),
        hidden: 0,
        unseen: None,
        notified: Vec::new(),
        back_after_ms: None,
        ended: Ended::NotYet,
        notes,
        took_ms: 0.0,
    };
    let connections = (record.as_ref()).map_or_else(Vec::new, |one| one.connections.clone());
    let tickling = tokio::spawn(tickle(connections));
    let mut configuration = configuration(record.as_ref())?;
    let wanted = match &record {
        Some(record) => {
            // An address that is not up when grace is over counts as gone.
            let awaited = changes::awaited(record, &configuration);
            if !awaited.is_empty() {
                let awaited: Vec<String> = awaited.iter().map(IpAddr::to_string).collect();
                output::progress(format_args!("waiting for {}", awaited.join(", ")));
            }
            configuration.addresses.extend(awaited);
            changes::split(record, &configuration).wanted
        }
        None => listed::record(begun.monitored, &configuration.addresses).await,
    };
    let mut follow = Follow {
        plan,
        watch,
        began: begun.began,
        until: Instant::now() + plan.deadline,
        // Without a record, it is not known when everything is back.
        may_end: record.is_some() && !wanted.changing,
        wanted,
        back: None,
        is_over: false,
    };
    let mut over = None;
    if begun.grace.stands() {
        let notification = follow.notify(&configuration.addresses)?;
        follow.follow().await?;
        report.ended = follow.end().await?;
        over = Some(Instant::now());
        let notified = notification.finish(Instant::now() + LINGER).await;
        let notified = notified.into_iter();
        report.notified = notified
            .map(|(vip, notified)| VipNotified { vip, notified })
            .collect();
    } else {
        report.ended = Ended::ByItself;
    }
    let over = over.unwrap_or_else(Instant::now);
    tickling.abort();
    let held = Held::read(follow.watch, READ_TIMEOUT)?;
    follow.book(&held, &mut report.notes);
    if let Some(record) = &record {
        configuration.addresses = netns::addresses().map_err(StartError::Node)?;
        compare(&mut report, record, &held, &configuration);
    }
    report.back_after_ms = follow.back.map(milliseconds);
    report.took_ms = milliseconds(begun.began.elapsed());
    Ok((report, over))
}

/// The record, or none if it cannot be read: clients must be notified nevertheless.
fn readable(state: &StateDir, notes: &mut Vec<String>) -> Option<Record> {
    stored(state).unwrap_or_else(|error| {
        notes.push(match stop::set_aside(state, &error) {
            Ok(Some(note)) => note,
            Ok(None) => chain(&error),
            Err(kept) => format!("{}; {}", chain(&error), chain(&kept)),
        });
        None
    })
}

/// Reports which part of the record is back.
fn compare(report: &mut StartReport, record: &Record, held: &Held, configuration: &Configuration) {
    let split = changes::split(record, configuration);
    let Split { wanted, lost, .. } = &split;
    let coverage = Coverage::of(wanted, held.present()).and_of_lost(lost, held.present());
    report.expected = coverage.expected;
    report.missing = coverage.missing;
    report.given_up = coverage.given_up;
    report.hidden = coverage.hidden;
    if !record.nfs4.is_empty() {
        report.unseen = held.states.as_ref().err().cloned();
    }
    report.changes = split.changes;
}

/// Whether the record has been used: there was a grace, and it is over, so nothing more can come back.
pub fn is_used(report: &StartReport) -> bool {
    report.grace.stands() && report.ended != Ended::NotYet
}

/// Removes the record that a start has used.
pub fn forget(state: &StateDir) {
    if let Err(error) = stop::used(state) {
        output::note(format_args!("{}", chain(&error)));
    }
}

fn configuration(record: Option<&Record>) -> Result<Configuration, StartError> {
    let exports = exports::exported().map_err(StartError::Node)?;
    Ok(Configuration {
        addresses: netns::addresses().map_err(StartError::Node)?,
        filesystems: Filesystems::read(&exports, record).map_err(StartError::Node)?,
        exports,
        versions: Nfsd::mounted()?.versions()?,
    })
}

struct Follow<'a> {
    plan: &'a Plan,
    watch: &'a mut Watch,
    began: Instant,
    until: Instant,
    may_end: bool,
    /// What can come back.
    wanted: Record,
    /// When all of it was back, counted from the start.
    back: Option<Duration>,
    /// Nothing more of it will come back.
    is_over: bool,
}

impl Follow<'_> {
    /// Starts to notify the clients, except those that hold all their locks again.
    fn notify(&mut self, here: &BTreeSet<IpAddr>) -> Result<Notification, StartError> {
        let booked = self.plan.state.vips().map_err(StartError::Node)?;
        let mut vips: BTreeSet<IpAddr> = self.wanted.vips.iter().copied().collect();
        vips.extend(booked.into_iter().filter(|vip| here.contains(vip)));
        let vips: Vec<IpAddr> = vips.into_iter().collect();
        let held = Held::read(self.watch, POLL_INTERVAL)?;
        let missing = Coverage::of(&self.wanted, held.present()).missing.locks;
        let mut settled = Settled::new();
        for lock in &self.wanted.locks {
            let host = &lock.host;
            settled.entry(host.vip).or_default().insert(host.client);
        }
        for lock in &missing {
            if let Some(clients) = settled.get_mut(&lock.host.vip) {
                clients.remove(&lock.host.client);
            }
        }
        let notifier = Notifier::Own {
            state: self.plan.state.clone(),
            config: self.plan.config.clone(),
        };
        let record = Some(&self.wanted);
        Ok(Notification::start(
            &notifier, &vips, record, &settled, self.until,
        ))
    }

    /// Follows the reclaims until the rest of the record can no longer come back, or grace is over.
    async fn follow(&mut self) -> Result<(), StartError> {
        let mut last: Option<((usize, Counts4), Instant)> = None;
        loop {
            let stands = Grace::read::<StartError>()?.stands();
            let held = Held::read(self.watch, READ_TIMEOUT)?;
            let coverage = Coverage::of(&self.wanted, held.present());
            let count = held.count();
            let since = match last {
                Some((same, since)) if same == count => since,
                _ => {
                    info!(
                        expected = coverage.expected,
                        missing = coverage.missing.len(),
                        "reclaimed"
                    );
                    output::progress(format_args!(
                        "{} of {} locks and opens are back",
                        coverage.expected - coverage.missing.len(),
                        coverage.expected
                    ));
                    Instant::now()
                }
            };
            last = Some((count, since));
            let quiet = quiet(&self.wanted, self.plan.fences_nfs4, coverage.hidden);
            self.back = match coverage.is_complete() {
                true => self.back.or_else(|| Some(self.began.elapsed())),
                false => None,
            };
            self.is_over = self.may_end
                && since.elapsed() >= quiet
                && !coverage.missing.may_come(held.states.as_ref().ok())
                && !(held.states.as_ref()).is_ok_and(|now| are_reclaiming(&self.wanted, now));
            if self.is_over || !stands || Instant::now() >= self.until {
                return Ok(());
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Ends both grace periods if nothing more can come back.
    async fn end(&mut self) -> Result<Ended, StartError> {
        if !Grace::read::<StartError>()?.stands() {
            return Ok(Ended::ByItself);
        }
        if !self.is_over {
            return Ok(Ended::NotYet);
        }
        let until = Instant::now() + END_TIMEOUT;
        loop {
            let stands = Grace::read::<StartError>()?;
            if !stands.stands() {
                return Ok(Ended::Early);
            }
            // nfsd refuses it until client tracking has started.
            let nfsd = match stands.nfsd {
                true => Nfsd::mounted()?.end_v4_grace(),
                false => Ok(()),
            };
            let lockd = match stands.lockd {
                true => lockd::end_grace(),
                false => Ok(()),
            };
            if Instant::now() >= until {
                warn!(?nfsd, ?lockd, "grace does not end");
                return Ok(Ended::NotYet);
            }
            sleep(POLL_INTERVAL / 4).await;
        }
    }

    /// Records the clients in the books. This node becomes their owner.
    fn book(&self, held: &Held, notes: &mut Vec<String>) {
        let mut by_vip: BTreeMap<IpAddr, Vec<_>> = BTreeMap::new();
        for &vip in &self.wanted.vips {
            let part = held.locks.part(|host| host.vip == vip);
            by_vip.insert(vip, noted::clients(&part));
        }
        for (vip, clients) in by_vip
            .into_iter()
            .filter(|(_, clients)| !clients.is_empty())
        {
            let book = noted::take_over(&self.plan.state, vip);
            if let Err(error) = book.and_then(|mut book| book.note(&clients)) {
                notes.push(format!("the client book of {vip}: {}", chain(&error)));
            }
        }
    }
}

/// How long nothing may have been reclaimed, once all of the record is back, before grace is ended.
fn quiet(record: &Record, fences_nfs4: bool, hidden: usize) -> Duration {
    let of_nfs3 = record.clients.len() + record.locks.len() + record.shares.len() > 0;
    match (hidden, fences_nfs4) {
        (0, false) if !record.nfs4.is_empty() => UNFENCED_QUIET,
        (0, _) if of_nfs3 || record.nfs4.iter().any(|line| line.client.minor == 0) => QUIET,
        (0, _) => Duration::ZERO,
        _ => HIDDEN_QUIET,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::record::sample::{lock, record, state};
    use crate::observe::states::Kind;
    use crate::observe::states::describe::{ClientLine4, StateLine};

    #[test]
    fn only_clients_that_do_not_say_when_they_are_done_are_waited_for() {
        let of = |minor| {
            let line = state(Kind::Open);
            let client = ClientLine4 {
                minor,
                ..line.client
            };
            StateLine { client, ..line }
        };
        let held = |nfs4| Record {
            nfs4,
            ..record(&["10.77.0.1"])
        };
        assert_eq!(quiet(&held(vec![of(1), of(2)]), true, 0), Duration::ZERO);
        assert_eq!(quiet(&held(vec![of(1), of(0)]), true, 0), QUIET);
        assert_eq!(quiet(&held(vec![of(1)]), false, 0), UNFENCED_QUIET);
        assert_eq!(quiet(&held(vec![of(1)]), true, 1), HIDDEN_QUIET);
        let mut of_nfs3 = held(Vec::new());
        of_nfs3.locks.push(lock("10.77.0.1", 0, 9));
        assert_eq!(quiet(&of_nfs3, false, 0), QUIET);
    }
}
