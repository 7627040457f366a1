//! The takeover phase, on the node that VIPs come to: grace for them alone, before they
//! are up; then the reclaims are followed until all are in, and grace ends.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use nlmfo_common::nlm_call::Fsid;
use tokio::time::sleep;
use tracing::info;

use super::milliseconds;
use super::noted;
use super::reclaim::Expected;
use super::record::Record;
use super::services::{self, Purpose, look};
use super::takeover_report::{TakeoverReport, VipTakeover};
use super::telling::{Outcomes, Settled, Teller, Telling};
use super::watch::Watch;
use super::window::{self, OpenError};
use crate::causes::chain;
use crate::grace::gate::{Gate, await_answers};
use crate::grace::lock::{Lock, TIMEOUT};
use crate::grace::report::WindowReport;
use crate::grace::{fence, leftovers, way};
use crate::kernel::netns;
use crate::kernel::nfsd;
use crate::kernel::path::PathFinder;
use crate::kernel::preflight::Facts;
use crate::notify::book::BookError;
use crate::notify::book::writer::Writer;
use crate::notify::state_dir::StateDir;
use crate::observe::counters::PerVip;
use crate::observe::describe::{Described, LockLine};
use crate::output;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    pub vips: Vec<IpAddr>,
    /// What the VIPs' clients held on the node that gave them up.
    pub expect: Option<Record>,
    /// How long grace may last.
    pub grace: Duration,
    /// New locks on these filesystems are refused through every address meanwhile.
    pub scope: Vec<Fsid>,
    /// How long to wait, with grace open, for services that would lose locks as they are;
    /// not at all if none.
    pub wait_services: Option<Duration>,
    /// How long to wait for the VIPs to be addresses of this node; not at all if none.
    pub wait_address: Option<Duration>,
    /// Who tells each VIP's clients to reclaim, when it is up.
    pub teller: Teller,
    /// Where the VIPs' client books are, which become this node's.
    pub state: StateDir,
}

/// How much longer clients are told that have nothing to reclaim: all locks are back.
const LINGER: Duration = Duration::from_secs(2);

/// Between two looks at what is reclaimed.
const LOOK: Duration = Duration::from_millis(250);

/// Directory entries to read for the names of files that were reached by their handles
/// alone, as reclaimed ones are; about a second's work on a cold disk.
const SEARCH_LIMIT: usize = 50_000;

/// Why there is no report. The window stays open until its deadline.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("this node's services would lose the locks:\n  {}", .0.join("\n  "))]
    NotReady(Vec<String>),
    #[error("grace was not opened")]
    Before(#[source] OpenError),
    #[error(
        "the grace of the VIPs goes on until its deadline (`nlmfo grace --list`), and nothing is \
         confirmed"
    )]
    After(#[source] anyhow::Error),
}

/// Takes the plan's VIPs over.
pub async fn run(
    plan: &Plan,
    facts: &Facts,
    watch: &mut Watch,
) -> Result<TakeoverReport, RunError> {
    let began = Instant::now();
    let blockers = services::blockers(&services::decide(
        &look::facts(&plan.state).await,
        &plan.purpose(),
    ));
    let patience = plan.wait_services.unwrap_or_default();
    if !blockers.is_empty() && patience.is_zero() {
        return Err(RunError::NotReady(blockers));
    }
    let mut window = way::Plan {
        vips: plan.vips.clone(),
        lasting: plan.grace,
        scope: plan.scope.clone(),
        lockd_later: !blockers.is_empty(),
    };
    if !blockers.is_empty() {
        window.lasting += patience;
    }
    let begun = (window::begin(&window, facts).await).map_err(RunError::Before)?;
    if !blockers.is_empty() {
        plan.wait_for_services(patience).await?;
        window.lasting = plan.grace;
    }
    let opened = (window::complete(&window, begun, watch).await).map_err(RunError::Before)?;
    // Of a release on this very node.
    (fence::lower(&plan.vips).await).map_err(|error| RunError::After(error.into()))?;
    let expected = plan.expect.as_ref().map(|record| {
        let vips = plan.vips.iter();
        vips.map(|&vip| (vip, Expected::of(record, vip))).collect()
    });
    let counters = (watch.counters()).map_err(|error| RunError::After(error.into()))?;
    let mut takeover = Takeover {
        plan,
        expected,
        counters,
        nfsd_ran: nfsd::runs(),
        nfsd_stopped: false,
        watch,
        until: Instant::now() + opened.left,
        began,
        books: Books::new(),
    };
    let telling = takeover.tell().map_err(RunError::After)?;
    let reclaims = takeover.follow().await.map_err(RunError::After)?;
    // Only now: the filesystem may have come with the address.
    let mut paths = (PathFinder::new(SEARCH_LIMIT).context("reading the mounted filesystems"))
        .map_err(RunError::After)?;
    let windows = (end(&plan.vips, opened.until, &mut paths).await).map_err(RunError::After)?;
    let told_until = match plan.teller {
        Teller::Own { .. } => Instant::now() + LINGER,
        // It is asked for by name, and has its own idea of how long to try.
        Teller::Program(_) | Teller::Nobody => takeover.until,
    };
    let told = telling.finish(told_until).await;
    takeover.look_at_nfsd().map_err(RunError::After)?;
    let nfsd_stopped = takeover.nfsd_stopped;
    let vips = takeover
        .vips(told, reclaims, windows, &mut paths)
        .map_err(RunError::After)?;
    Ok(TakeoverReport {
        schema: TakeoverReport::SCHEMA,
        node: netns::node(),
        kernel: facts.release.clone(),
        vips,
        waiters_cancelled: opened.cancelled,
        still_waiting: opened.waiting,
        by_gate: opened.begun.is_some(),
        nfsd_stopped,
        uncovered: (opened.begun).map_or_else(Vec::new, |begun| begun.coverage.uncovered),
        took_ms: milliseconds(began.elapsed()),
    })
}

impl Plan {
    /// What the services are looked at for.
    fn purpose(&self) -> Purpose {
        Purpose {
            vips: self.vips.clone(),
            // Else they come with the address.
            exports_now: self.wait_address.is_none(),
            unseen: None,
        }
    }

    /// Waits behind the open window. It is ended again if they do not come: then nothing
    /// has been done.
    async fn wait_for_services(&self, patience: Duration) -> Result<(), RunError> {
        let checks = look::wait(&self.state, &self.purpose(), patience).await;
        let blockers = services::blockers(&checks);
        if blockers.is_empty() {
            return Ok(());
        }
        let mut paths = (PathFinder::new(0).context("reading the mounted filesystems"))
            .map_err(RunError::After)?;
        (end(&self.vips, 0, &mut paths).await).map_err(RunError::After)?;
        Err(RunError::NotReady(blockers))
    }
}

/// When the last expected lock of each VIP was seen to be back.
type Reclaims = BTreeMap<IpAddr, Duration>;

/// The VIPs' books, or why they are not this node's.
type Books = BTreeMap<IpAddr, Result<Writer, BookError>>;

struct Takeover<'a> {
    plan: &'a Plan,
    /// What each of the plan's VIPs is to have back; none if nobody said.
    expected: Option<BTreeMap<IpAddr, Expected>>,
    watch: &'a mut Watch,
    /// Of before the clients were told.
    counters: PerVip,
    nfsd_ran: bool,
    nfsd_stopped: bool,
    until: Instant,
    began: Instant,
    books: Books,
}

impl Takeover<'_> {
    /// Has the clients told; not of what an interrupted run has brought back already.
    fn tell(&mut self) -> anyhow::Result<Telling> {
        let Plan { teller, expect, .. } = self.plan;
        let mut vips = self.plan.vips.clone();
        let mut settled = Settled::new();
        for (&vip, expected) in self.expected.iter().flatten() {
            let held = self.watch.look(vip)?.ours;
            settled.insert(vip, expected.settled(&held));
            // A program tells all the VIP's clients or none.
            let is_all_back = !expected.is_empty() && expected.missing(&held).is_empty();
            if is_all_back && matches!(teller, Teller::Program(_)) {
                vips.retain(|&other| other != vip);
            }
        }
        Telling::start(teller, &vips, expect.as_ref(), &settled, self.until)
    }

    /// From the open window to the moment when it may end.
    async fn follow(&mut self) -> anyhow::Result<Reclaims> {
        self.wait_for_addresses().await?;
        // Not earlier: until it let go, the other node has noted its clients. From now on
        // whoever sees them here does.
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
            sleep(LOOK.min(self.until.saturating_duration_since(Instant::now()))).await;
        }
        Ok(reclaims)
    }

    async fn wait_for_addresses(&self) -> anyhow::Result<()> {
        let Some(patience) = self.plan.wait_address else {
            return Ok(());
        };
        let until = self.until.min(Instant::now() + patience);
        for &vip in &self.plan.vips {
            while !netns::has_address(vip).context("reading this node's addresses")? {
                anyhow::ensure!(
                    Instant::now() < until,
                    "{vip} is no address of this node after {} s: bring it up, or give \
                     --wait-address more time",
                    patience.as_secs_f64()
                );
                sleep(LOOK).await;
            }
        }
        Ok(())
    }

    /// Whether nfsd has been stopped: it takes lockd down, with all that was reclaimed. Also
    /// if it was started again before anybody looked, and held locks then.
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

    /// How many of the expected locks are not back.
    fn missing(&mut self, reclaims: &mut Reclaims) -> anyhow::Result<usize> {
        let mut missing = 0;
        for (&vip, expected) in self.expected.iter().flatten() {
            let left = expected.missing(&self.watch.look(vip)?.ours).len();
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

    /// What came of each VIP, after its window's end.
    fn vips(
        &mut self,
        mut told: Outcomes,
        reclaims: Reclaims,
        mut windows: Vec<WindowReport>,
        paths: &mut PathFinder,
    ) -> anyhow::Result<Vec<VipTakeover>> {
        let mut vips = Vec::new();
        for &vip in &self.plan.vips {
            let held = self.watch.look(vip)?.ours;
            let expected = (self.expected.as_ref()).and_then(|expected| expected.get(&vip));
            let missing: Vec<LockLine> = (expected.iter())
                .flat_map(|expected| expected.missing(&held))
                .cloned()
                .collect();
            let book = (self.books.remove(&vip).transpose())
                .and_then(|book| book.map_or(Ok(()), |mut book| book.note(&noted::clients(&held))));
            let window = windows.iter().position(|window| window.vip == vip);
            vips.push(VipTakeover {
                vip,
                is_here: netns::has_address(vip).context("reading this node's addresses")?,
                expected: expected.map(|expected| expected.len()),
                missing,
                held: Described::new(&held, paths).locks().collect(),
                told: told.remove(&vip),
                book_error: book.err().map(|error| chain(&error)),
                all_back_ms: reclaims.get(&vip).copied().map(milliseconds),
                window: window.map(|at| windows.swap_remove(at)),
            });
        }
        Ok(vips)
    }
}

/// Ends the windows and returns their reports. If their time is over, the keeper may have
/// removed the gate: then it has kept the reports of the windows that ended at `until`.
async fn end(
    vips: &[IpAddr],
    until: u64,
    paths: &mut PathFinder,
) -> anyhow::Result<Vec<WindowReport>> {
    let windows = {
        let _lock = Lock::Gate.take(TIMEOUT).await?;
        match Gate::in_force()? {
            Some(mut gate) => {
                gate.end(vips)?;
                await_answers().await;
                gate.report(paths)?
            }
            None => leftovers::last_report()?.map_or_else(Vec::new, |kept| {
                let windows = kept.windows.into_iter();
                windows
                    .filter(|window| window.until_ns == until && vips.contains(&window.vip))
                    .collect()
            }),
        }
    };
    leftovers::finish_if_over().await?;
    Ok(windows)
}

/// For a person who waits; scripts read the report.
fn progress(expected: usize, missing: usize) {
    let back = expected - missing;
    info!(back, expected, "reclaimed");
    output::progress(format_args!("{back} of {expected} locks are back"));
}
