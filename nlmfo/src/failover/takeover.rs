//! The takeover phase, on the node that takes over VIPs: grace starts before they are up,
//! then the reclaims are followed until all are in, and grace ends.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use nlmfo_common::nlm_call::Fsid;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::announce::announce;
use super::noted;
use super::notification::{Notification, Notifier, Outcomes, Settled};
use super::reclaim::{Expected, split};
use super::record::Record;
use super::services::{self, Purpose, look};
use super::takeover_report::{TakeoverReport, VipTakeover};
use super::tickle::tickle;
use super::watch::Watch;
use super::window::{self, OpenError};
use crate::causes::chain;
use crate::grace::devices::Coverage;
use crate::grace::report::WindowReport;
use crate::grace::{fence, leftovers, method};
use crate::kernel::netns;
use crate::kernel::nfsd;
use crate::kernel::path::PathFinder;
use crate::kernel::preflight::Facts;
use crate::notify::book::writer::Writer;
use crate::notify::book::{Book, BookError};
use crate::notify::state_dir::StateDir;
use crate::observe::counters::PerVip;
use crate::observe::describe::Described;
use crate::output;
use crate::times::milliseconds;

/// What to take over, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    pub vips: Vec<IpAddr>,
    /// What the VIPs' clients held on the old node.
    pub expect: Option<Record>,
    /// Maximum grace time.
    pub grace: Duration,
    /// Filesystems on which new locks are refused through every address during grace.
    pub scope: Vec<Fsid>,
    /// How long to wait, in grace, for services that are not ready; none means no wait.
    pub wait_services: Option<Duration>,
    /// How long to wait until the VIPs are up on this node; none means no wait.
    pub wait_address: Option<Duration>,
    /// Who notifies each VIP's clients once it is up.
    pub notifier: Notifier,
    /// Where the VIPs' client books are. They become this node's.
    pub state: StateDir,
}

/// How much longer to notify clients without locks, once all locks are reclaimed.
const LINGER: Duration = Duration::from_secs(2);

/// Maximum time to cancel waiters, before lockd is known to answer.
const EARLY_CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time for the state directory to answer: more than the lease and grace of a server that it
/// may be mounted from.
const BOOKS_TIMEOUT: Duration = Duration::from_mins(5);

/// Time between two checks of what is reclaimed.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Maximum number of directory entries to read to find the names of reclaimed files, which
/// the kernel knows only by handle; takes about a second on a cold disk.
const SEARCH_LIMIT: usize = 50_000;

/// Why there is no report. An open window stays open until its deadline.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("services on this node are not ready, and reclaims would be lost:\n  {}", .0.join("\n  "))]
    NotReady(Vec<String>),
    #[error("grace was not started")]
    Before(#[source] OpenError),
    #[error(
        "nothing is confirmed; grace for the VIPs continues until its deadline (`nlmfo grace --list`)"
    )]
    After(#[source] anyhow::Error),
}

/// Takes over the plan's VIPs.
pub async fn run(
    plan: &Plan,
    facts: &Facts,
    watch: &mut Watch,
) -> Result<TakeoverReport, RunError> {
    let began = Instant::now();
    let blockers = plan.blockers().await;
    let max_wait = plan.wait_services.unwrap_or_default();
    if !blockers.is_empty() && max_wait.is_zero() {
        return Err(RunError::NotReady(blockers));
    }
    let mut window = method::Plan {
        vips: plan.vips.clone(),
        lasting: plan.grace,
        scope: plan.scope.clone(),
        lockd_later: !blockers.is_empty(),
    };
    if !blockers.is_empty() {
        window.lasting += max_wait;
    }
    // Before a client can reach the VIP.
    watch.follow_unlocks();
    let coverage = (window::begin(&window, facts).await).map_err(RunError::Before)?;
    let coverage = plan.wait_for_books(coverage, &window, facts).await?;
    if !blockers.is_empty() {
        // Waiters would be granted meanwhile. If lockd does not answer, this is done again
        // afterwards.
        if let Err(error) = window::cancel_waiters(&plan.vips, EARLY_CANCEL_TIMEOUT, watch).await {
            warn!(error = chain(&error), "waiters are not cancelled yet");
        }
        plan.wait_for_services(max_wait).await?;
        window.lasting = plan.grace;
    }
    let opened = (window::complete(&window, coverage, watch).await).map_err(RunError::Before)?;
    // Fences of a release on this node.
    (fence::lower(&plan.vips).await).map_err(|error| RunError::After(error.into()))?;
    let expected = plan.expect.as_ref().map(|record| {
        let vips = plan.vips.iter();
        vips.map(|&vip| (vip, Expected::of(record, vip))).collect()
    });
    let counters = (watch.counters()).map_err(|error| RunError::After(error.into()))?;
    let mut takeover = Takeover {
        plan,
        expected,
        complete: BTreeSet::new(),
        counters,
        nfsd_ran: nfsd::runs(),
        nfsd_stopped: false,
        watch,
        until: Instant::now() + opened.left,
        began,
        books: Books::new(),
    };
    let notification = takeover.tell().map_err(RunError::After)?;
    let reclaims = takeover.follow().await.map_err(RunError::After)?;
    // Not earlier: the filesystem may come with the address.
    let mut paths = (PathFinder::new(SEARCH_LIMIT).context("reading the mounted filesystems"))
        .map_err(RunError::After)?;
    let windows = (end(&plan.vips, opened.until, &mut paths).await).map_err(RunError::After)?;
    let notify_until = match plan.notifier {
        Notifier::Own { .. } => Instant::now() + LINGER,
        // The program decides itself how long to try.
        Notifier::Program(_) | Notifier::Disabled => takeover.until,
    };
    let notified = notification.finish(notify_until).await;
    takeover.look_at_nfsd().map_err(RunError::After)?;
    let nfsd_stopped = takeover.nfsd_stopped;
    let vips = takeover
        .vips(notified, reclaims, windows, &mut paths)
        .map_err(RunError::After)?;
    Ok(TakeoverReport {
        schema: TakeoverReport::SCHEMA,
        node: netns::node(),
        kernel: facts.release.clone(),
        vips,
        waiters_cancelled: opened.cancelled,
        still_waiting: opened.waiting,
        by_gate: opened.coverage.is_some(),
        nfsd_stopped,
        uncovered: (opened.coverage).map_or_else(Vec::new, |coverage| coverage.uncovered),
        took_ms: milliseconds(began.elapsed()),
    })
}

impl Plan {
    /// The services of this node that would lose the locks now.
    pub(super) async fn blockers(&self) -> Vec<String> {
        let facts = look::facts(&self.state).await;
        services::blockers(&services::decide(&facts, &self.purpose()))
    }

    /// Why the services are checked.
    fn purpose(&self) -> Purpose {
        Purpose {
            vips: self.vips.clone(),
            // Otherwise exports come with the address.
            exports_now: self.wait_address.is_none(),
            unseen: None,
        }
    }

    /// Reads the books, and keeps the window open meanwhile: its time counts from then on. If the
    /// state directory is on NFS, its server may have delegated the newest book to the old node.
    /// If that node is dead, nobody can read the book before the server's lease time is over.
    async fn wait_for_books(
        &self,
        mut coverage: Option<Coverage>,
        window: &method::Plan,
        facts: &Facts,
    ) -> Result<Option<Coverage>, RunError> {
        let asked = Instant::now();
        let (state, vips) = (self.state.clone(), self.vips.clone());
        // What is wrong with a book is reported by those who need it.
        let read = move || {
            for vip in vips {
                let _ = Book::read(&state, vip);
            }
        };
        let mut reading = tokio::task::spawn_blocking(read);
        while timeout(window.lasting / 3, &mut reading).await.is_err() {
            let directory = self.state.path().display();
            if asked.elapsed() >= BOOKS_TIMEOUT {
                let minutes = BOOKS_TIMEOUT.as_secs() / 60;
                let why = format!(
                    "the state directory {directory} does not answer in {minutes} minutes: see what \
                     it is mounted from, then run this again"
                );
                return Err(self.not_ready(vec![why]).await?);
            }
            warn!(%directory, "the state directory does not answer yet");
            if coverage.is_some() {
                coverage = (window::begin(window, facts).await).map_err(RunError::Before)?;
            }
        }
        Ok(coverage)
    }

    /// Waits with the window open. Ends the window if the services do not come up.
    async fn wait_for_services(&self, max_wait: Duration) -> Result<(), RunError> {
        let checks = look::wait(&self.state, &self.purpose(), max_wait).await;
        let blockers = services::blockers(&checks);
        if blockers.is_empty() {
            return Ok(());
        }
        Err(self.not_ready(blockers).await?)
    }

    /// Ends the window, so that nothing has changed, and says why.
    async fn not_ready(&self, why: Vec<String>) -> Result<RunError, RunError> {
        let mut paths = (PathFinder::new(0).context("reading the mounted filesystems"))
            .map_err(RunError::After)?;
        (end(&self.vips, 0, &mut paths).await).map_err(RunError::After)?;
        Ok(RunError::NotReady(why))
    }
}

/// When the last expected lock of each VIP was reclaimed.
type Reclaims = BTreeMap<IpAddr, Duration>;

/// The VIPs' books, or why this node could not take them over.
type Books = BTreeMap<IpAddr, Result<Writer, BookError>>;

struct Takeover<'a> {
    plan: &'a Plan,
    /// The locks expected for each of the plan's VIPs; none without a record.
    expected: Option<BTreeMap<IpAddr, Expected>>,
    /// The VIPs whose expected locks were all held when grace began.
    complete: BTreeSet<IpAddr>,
    watch: &'a mut Watch,
    /// The counters before the clients were notified.
    counters: PerVip,
    nfsd_ran: bool,
    nfsd_stopped: bool,
    until: Instant,
    began: Instant,
    books: Books,
}

impl Takeover<'_> {
    /// Starts to notify the clients, except those that an interrupted run has served already.
    fn tell(&mut self) -> anyhow::Result<Notification> {
        let Plan {
            notifier, expect, ..
        } = self.plan;
        let mut vips = self.plan.vips.clone();
        let mut settled = Settled::new();
        for (&vip, expected) in self.expected.iter().flatten() {
            let held = self.watch.look(vip)?.ours;
            settled.insert(vip, expected.settled(&held));
            if expected.missing(&held).is_empty() {
                self.complete.insert(vip);
            }
            // A program notifies all clients of a VIP or none.
            let is_all_back = !expected.is_empty() && self.complete.contains(&vip);
            if is_all_back && matches!(notifier, Notifier::Program(_)) {
                vips.retain(|&other| other != vip);
            }
        }
        let (expect, until) = (expect.as_ref(), self.until);
        Ok(Notification::start(
            notifier, &vips, expect, &settled, until,
        ))
    }

    /// Follows the reclaims until grace may end.
    async fn follow(&mut self) -> anyhow::Result<Reclaims> {
        self.wait_for_addresses().await?;
        let connections = (self.plan.expect.iter())
            .flat_map(|record| record.connections.iter())
            .filter(|connection| self.plan.vips.contains(&connection.vip));
        let tickling = tokio::spawn(tickle(connections.cloned().collect()));
        // Not earlier: until now the old node has recorded the clients. From now on this node does.
        for &vip in &self.plan.vips {
            let book = noted::take_over(&self.plan.state, vip);
            self.books.insert(vip, book);
        }
        let mut reclaims = Reclaims::new();
        let mut shown = None;
        while Instant::now() < self.until {
            self.look_at_nfsd()?;
            if let Some(expected) = &self.expected {
                let all = expected.values().map(Expected::len).sum();
                let missing = self.missing(&mut reclaims)?;
                if shown != Some(missing) {
                    shown = Some(missing);
                    progress(all, missing);
                }
                if missing == 0 {
                    break;
                }
            }
            sleep(POLL_INTERVAL.min(self.until.saturating_duration_since(Instant::now()))).await;
        }
        tickling.abort();
        Ok(reclaims)
    }

    /// Waits for the VIPs, if it is told to, and announces each as soon as it is up. Without a wait,
    /// all are announced.
    async fn wait_for_addresses(&self) -> anyhow::Result<()> {
        let mut awaited = self.plan.vips.clone();
        let Some(max_wait) = self.plan.wait_address else {
            awaited.into_iter().for_each(announce);
            return Ok(());
        };
        let began = Instant::now();
        let until = self.until.min(began + max_wait);
        loop {
            let addresses = netns::addresses().context("reading this node's addresses")?;
            awaited.retain(|vip| {
                let is_up = addresses.contains(vip);
                if is_up {
                    announce(*vip);
                }
                !is_up
            });
            if awaited.is_empty() {
                return Ok(());
            }
            let what = match awaited.len() {
                1 => "is not an address",
                _ => "are not addresses",
            };
            let awaited: Vec<String> = awaited.iter().map(IpAddr::to_string).collect();
            anyhow::ensure!(
                Instant::now() < until,
                "{} {what} of this node after {:.1} s: bring up what is missing, or give --wait-address \
                 and --grace more time",
                awaited.join(", "),
                began.elapsed().as_secs_f64()
            );
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Checks whether nfsd has been stopped, which drops all reclaimed locks, even if it runs
    /// again by now.
    fn look_at_nfsd(&mut self) -> anyhow::Result<()> {
        let now = self.watch.counters()?;
        let shut_down = |counters: &PerVip, vip: &IpAddr| {
            let counters = counters.get(vip);
            counters.map_or(0, |counters| counters.released.shutdown)
        };
        let is_lost = |vip| shut_down(&now, vip) > shut_down(&self.counters, vip);
        let is_stopped = self.nfsd_ran && !nfsd::runs();
        self.nfsd_stopped |= is_stopped || self.plan.vips.iter().any(is_lost);
        Ok(())
    }

    /// The number of expected locks that are neither reclaimed nor given up.
    fn missing(&mut self, reclaims: &mut Reclaims) -> anyhow::Result<usize> {
        let mut missing = 0;
        let unlocked = self.watch.given_up()?.nfs3;
        for (&vip, expected) in self.expected.iter().flatten() {
            let held = self.watch.look(vip)?.ours;
            let left = split(expected.missing(&held), &unlocked).0.len();
            match left {
                0 => {
                    let at = self.began.elapsed();
                    reclaims.entry(vip).or_insert(at);
                }
                _ => {
                    reclaims.remove(&vip);
                }
            }
            missing += left;
        }
        Ok(missing)
    }

    /// The result for each VIP, after its window has ended.
    fn vips(
        &mut self,
        mut notified: Outcomes,
        reclaims: Reclaims,
        mut windows: Vec<WindowReport>,
        paths: &mut PathFinder,
    ) -> anyhow::Result<Vec<VipTakeover>> {
        let mut vips = Vec::new();
        let unlocked = self.watch.given_up()?.nfs3;
        for &vip in &self.plan.vips {
            let held = self.watch.look(vip)?.ours;
            let expected = (self.expected.as_ref()).and_then(|expected| expected.get(&vip));
            let missing = expected.map_or_else(Vec::new, |expected| expected.missing(&held));
            let (missing, given_up) = split(missing, &unlocked);
            let book = (self.books.remove(&vip).transpose())
                .and_then(|book| book.map_or(Ok(()), |mut book| book.note(&noted::clients(&held))));
            let window = windows.iter().position(|window| window.vip == vip);
            let window = window.map(|at| windows.swap_remove(at));
            vips.push(VipTakeover {
                vip,
                address_up: netns::has_address(vip).context("reading this node's addresses")?,
                expected: expected.map(|expected| expected.len()),
                missing: missing.into_iter().cloned().collect(),
                given_up: given_up.into_iter().cloned().collect(),
                held: Described::new(&held, paths).locks().collect(),
                notified: notified.remove(&vip),
                book_error: book.err().map(|error| chain(&error)),
                reclaimed_after_ms: reclaims.get(&vip).copied().map(milliseconds),
                late: window.as_ref().is_some_and(|window| window.late)
                    && !self.complete.contains(&vip),
                window,
            });
        }
        Ok(vips)
    }
}

/// Ends the windows, which were to end at `until`, and returns their reports.
async fn end(
    vips: &[IpAddr],
    until: u64,
    paths: &mut PathFinder,
) -> anyhow::Result<Vec<WindowReport>> {
    let ended = leftovers::end(vips, until, paths).await?;
    leftovers::finish_if_over().await?;
    Ok(ended.windows)
}

/// Progress for a person who waits.
fn progress(expected: usize, missing: usize) {
    let back = expected - missing;
    info!(back, expected, "reclaimed");
    output::progress(format_args!("{back} of {expected} locks reclaimed"));
}
