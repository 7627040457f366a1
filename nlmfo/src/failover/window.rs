//! Opens a grace window with all that belongs to it: first the gate, then the VIP's waiters
//! are cancelled, since lockd would grant them without a new call.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use tracing::warn;

use super::tickle::end_left;
use super::watch::Watch;
use crate::grace::devices::Coverage;
use crate::grace::method::{self, Method, Plan};
use crate::grace::{self, GraceError};
use crate::kernel::preflight::Facts;
use crate::observe::error::ObserveError;
use crate::release::free_all::FreeAll;
use crate::release::target::targets;
use crate::release::{self, Job, Turn};

/// Maximum time for the calls that cancel waiters.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);

/// A window that is open.
#[derive(Debug)]
pub struct Opened {
    /// Which devices the gate covers; None if the kernel has the RFC's file and provides grace
    /// itself.
    pub coverage: Option<Coverage>,
    /// Time left.
    pub left: Duration,
    /// When it ends, by [`grace::window::now`]'s clock; 0 if the kernel ends it.
    pub until: u64,
    /// Waiters of the VIPs that were cancelled.
    pub cancelled: usize,
    /// Waiters that remain, as text; they may be granted in the window.
    pub waiting: Vec<String>,
}

/// Why a window is not open, or not complete.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Grace(#[from] GraceError),
    #[error(transparent)]
    Observe(#[from] ObserveError),
    #[error("cannot cancel the waiters of {vip}")]
    Waiters { vip: IpAddr, source: release::Error },
}

/// Opens the plan's windows. On return, lockd's answers are audited.
pub async fn open(plan: &Plan, facts: &Facts, watch: &mut Watch) -> Result<Opened, OpenError> {
    let coverage = begin(plan, facts).await?;
    complete(plan, coverage, watch).await
}

/// The first half: new locks are refused. Waiters of the VIPs may still be granted.
pub async fn begin(plan: &Plan, facts: &Facts) -> Result<Option<Coverage>, OpenError> {
    end_left(&plan.vips).await;
    Ok(match Method::choose(facts) {
        Method::RfcFile => {
            method::start_by_rfc_file(&plan.vips)?;
            None
        }
        Method::Gate => Some(method::begin(plan).await?),
    })
}

/// The second half, for which lockd must answer.
pub async fn complete(
    plan: &Plan,
    coverage: Option<Coverage>,
    watch: &mut Watch,
) -> Result<Opened, OpenError> {
    let waiters = cancel_waiters(&plan.vips, plan.lasting, watch).await?;
    let mut opened = Opened {
        coverage,
        left: plan.lasting,
        until: 0,
        cancelled: waiters.cancelled,
        waiting: waiters.left,
    };
    if opened.coverage.is_some() {
        let until = method::confirm(plan).await?;
        opened.left = grace::window::left(until, grace::window::now());
        opened.until = until;
    }
    Ok(opened)
}

/// The result of cancelling the waiters of VIPs.
#[derive(Debug, Default)]
pub struct Waiters {
    pub cancelled: usize,
    /// Those that are still there, in words.
    pub left: Vec<String>,
}

/// Cancels the waiters of the VIPs. Waits up to `max_wait` for another run that releases locks
/// or waiters, and then for lockd.
pub async fn cancel_waiters(
    vips: &[IpAddr],
    max_wait: Duration,
    watch: &mut Watch,
) -> Result<Waiters, OpenError> {
    let mut waiters = Waiters::default();
    for &vip in vips {
        cancel_waiters_of(vip, max_wait, watch, &mut waiters).await?;
    }
    Ok(waiters)
}

async fn cancel_waiters_of(
    vip: IpAddr,
    max_wait: Duration,
    watch: &mut Watch,
    waiters: &mut Waiters,
) -> Result<(), OpenError> {
    let before = watch.look(vip)?.ours;
    if before.waiters.is_empty() {
        return Ok(());
    }
    let targets = targets(&before, vip, watch.netns());
    let turn = (Turn::take(max_wait).await).map_err(|source| OpenError::Waiters { vip, source })?;
    let job = Job {
        vip,
        netns: watch.netns(),
        targets: &targets,
        elsewhere: &BTreeSet::new(),
        filesystems: &[],
        turn: &turn,
        deadline: max_wait.min(CANCEL_TIMEOUT),
    };
    let report = (FreeAll.cancel_waiters(&job).await)
        .map_err(|source| OpenError::Waiters { vip, source })?;
    for failed in report.failures() {
        warn!(host = %failed.host, outcome = ?failed.outcome, "waiters not cancelled");
    }
    let after = watch.look(vip)?.ours;
    waiters.cancelled += before.waiters.len().saturating_sub(after.waiters.len());
    for waiter in &after.waiters {
        let client = after.host(waiter.host).key.client;
        waiters.left.push(format!(
            "{client} still waits for a {} lock {} through {vip}, svid {}",
            waiter.mode, waiter.range, waiter.svid
        ));
    }
    Ok(())
}
