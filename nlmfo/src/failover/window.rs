//! Opening a grace window with everything that belongs to it: the gate first, then the
//! VIP's waiting requests, which would be granted without a question.

use std::net::IpAddr;
use std::time::Duration;

use tracing::warn;

use super::watch::Watch;
use crate::grace::way::{self, Begun, Plan, Way};
use crate::grace::{self, GraceError};
use crate::kernel::preflight::Facts;
use crate::observe::programs::ObserveError;
use crate::release::free_all::FreeAll;
use crate::release::target::targets;
use crate::release::{self, Job, Turn};

/// For the calls that cancel waiters, as long as the window lasts.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(30);

/// A window that is open.
#[derive(Debug)]
pub struct Opened {
    /// None where the kernel has the RFC's file: its grace is the kernel's own.
    pub begun: Option<Begun>,
    /// How much of its time is left.
    pub left: Duration,
    /// When it ends, by [`grace::window::now`]'s clock; 0 if the kernel ends it.
    pub until: u64,
    /// Requests that waited through the VIPs, and wait no more.
    pub cancelled: usize,
    /// Waiting requests that are still there, in words: they may be granted in the
    /// window.
    pub waiting: Vec<String>,
}

/// Why a window is not open, or not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error(transparent)]
    Grace(#[from] GraceError),
    #[error(transparent)]
    Observe(#[from] ObserveError),
    #[error("cancelling the requests that wait through {vip}")]
    Waiters { vip: IpAddr, source: release::Error },
}

/// Opens the plan's windows. On return lockd's answers are audited.
pub async fn open(plan: &Plan, facts: &Facts, watch: &mut Watch) -> Result<Opened, OpenError> {
    let begun = begin(plan, facts).await?;
    complete(plan, begun, watch).await
}

/// The first half: new locks are refused. What waits through the VIPs may still be
/// granted.
pub async fn begin(plan: &Plan, facts: &Facts) -> Result<Option<Begun>, OpenError> {
    Ok(match Way::choose(facts) {
        Way::RfcFile => {
            way::start_by_rfc_file(&plan.vips)?;
            None
        }
        Way::Gate => Some(way::begin(plan).await?),
    })
}

/// The second half, for which lockd must answer.
pub async fn complete(
    plan: &Plan,
    begun: Option<Begun>,
    watch: &mut Watch,
) -> Result<Opened, OpenError> {
    let mut opened = Opened {
        begun,
        left: plan.lasting,
        until: 0,
        cancelled: 0,
        waiting: Vec::new(),
    };
    for &vip in &plan.vips {
        clear_waiters(vip, plan.lasting, watch, &mut opened).await?;
    }
    if opened.begun.is_some() {
        let until = way::confirm(plan).await?;
        opened.left = grace::window::left(until, grace::window::now());
        opened.until = until;
    }
    Ok(opened)
}

/// Waits up to `patience` for another run that makes lockd give up something.
async fn clear_waiters(
    vip: IpAddr,
    patience: Duration,
    watch: &mut Watch,
    opened: &mut Opened,
) -> Result<(), OpenError> {
    let before = watch.look(vip)?.ours;
    if before.waiters.is_empty() {
        return Ok(());
    }
    let targets = targets(&before, vip, watch.netns());
    let turn = (Turn::take(patience).await).map_err(|source| OpenError::Waiters { vip, source })?;
    let deadline = patience.min(CANCEL_TIMEOUT);
    let calls = FreeAll {
        netns: watch.netns(),
        deadline,
        overall: deadline,
    };
    let job = Job {
        vip,
        targets: &targets,
        turn: &turn,
    };
    let report =
        (calls.cancel_waiters(&job).await).map_err(|source| OpenError::Waiters { vip, source })?;
    for failed in report.failures() {
        warn!(host = %failed.host, outcome = ?failed.outcome, "waiters not cancelled");
    }
    let after = watch.look(vip)?.ours;
    opened.cancelled += before.waiters.len().saturating_sub(after.waiters.len());
    for waiter in &after.waiters {
        let client = after.host(waiter.host).key.client;
        opened.waiting.push(format!(
            "{client} still waits for a {} lock {} through {vip}, svid {}",
            waiter.mode, waiter.range, waiter.svid
        ));
    }
    Ok(())
}
