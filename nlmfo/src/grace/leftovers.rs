//! What ended windows leave behind: the gate and its counts.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tracing::warn;

use super::gate::{self, Gate};
use super::lock::{ProcessLock, TIMEOUT};
use super::pins::{self, Pins, State};
use super::report::WindowReport;
use super::{GraceError, window};
use crate::causes::chain;
use crate::files::run::{self, RunError};
use crate::files::{self, LIMIT, PRIVATE};
use crate::kernel::netns;
use crate::kernel::path::PathFinder;
use crate::observe::lockd_queue::pass_queue;

/// Removes the gate from the kernel after the end of its last window, and keeps the windows' report for
/// `nlmfo grace --list`. Must be called with [`ProcessLock::Gate`] held, when lockd has answered
/// ([`await_answers`]).
pub(super) async fn finish(gate: Gate) -> Result<(), GraceError> {
    keep_report(&gate);
    gate.detach().await?;
    Ok(())
}

/// Removes a gate that has no open window any more, and keeps its report.
pub(crate) async fn finish_if_over() -> Result<(), GraceError> {
    {
        let _lock = ProcessLock::Gate.take(TIMEOUT).await?;
        match Gate::in_force()? {
            Some(gate) if gate.ends()? <= window::now() => {}
            Some(_) => return Ok(()),
            None => return remove_partial().await,
        }
    }
    // Without the lock: lockd may be blocked, and other processes may open windows in the meantime.
    await_answers().await;
    let _lock = ProcessLock::Gate.take(TIMEOUT).await?;
    match Gate::in_force()? {
        Some(gate) if gate.ends()? <= window::now() => finish(gate).await,
        _ => Ok(()),
    }
}

/// How windows ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub windows: Vec<WindowReport>,
    /// The VIPs that had no open window.
    pub not_open: Vec<IpAddr>,
}

/// Ends the windows of these VIPs, and reports when lockd has answered what reached it in
/// them. If their time is over, the keeper may have removed the gate: then it has kept the
/// reports of the windows, which ended at `until`.
pub(crate) async fn end(
    vips: &[IpAddr],
    until: u64,
    paths: &mut PathFinder,
) -> Result<Ended, GraceError> {
    let mut ends = vec![until];
    let mut not_open = vips.to_vec();
    let is_there = {
        let _lock = ProcessLock::Gate.take(TIMEOUT).await?;
        let gate = Gate::in_force()?;
        let is_there = gate.is_some();
        if let Some(mut gate) = gate {
            not_open = gate.end(vips)?;
            let windows = gate.windows()?.into_iter();
            let ours = windows.filter(|(vip, _)| vips.contains(vip));
            ends.extend(ours.map(|(_, window)| window.until));
        }
        is_there
    };
    if is_there {
        // Without the lock, as in `finish_if_over`.
        await_answers().await;
    }
    let _lock = ProcessLock::Gate.take(TIMEOUT).await?;
    let mut windows = match Gate::in_force()? {
        Some(gate) => gate.report(paths)?,
        None => Vec::new(),
    };
    // The keeper may have removed the gate meanwhile, or have replaced it by one for a new lockd,
    // which has no windows that had ended before.
    let kept = last_report()?.map_or_else(Vec::new, |kept| kept.windows);
    let is_lost = |window: &WindowReport| {
        ends.contains(&window.until_ns) && windows.iter().all(|other| other.vip != window.vip)
    };
    let kept: Vec<_> = kept.into_iter().filter(is_lost).collect();
    windows.extend(kept);
    windows.retain(|window| vips.contains(&window.vip));
    Ok(Ended { windows, not_open })
}

/// Removes what a killed loader left. Must be called with [`ProcessLock::Gate`] held.
pub(super) async fn remove_partial() -> Result<(), GraceError> {
    for pins in Pins::all_versions_here()? {
        if pins.state()? == State::Partial {
            gate::detach(&pins).await?;
        }
    }
    pins::remove_empty()
}

/// The reports of ended windows whose gate is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct LastReport {
    /// The report for people.
    pub text: String,
    /// Whether every window was enforced.
    pub good: bool,
    pub windows: Vec<WindowReport>,
}

impl LastReport {
    fn new(windows: Vec<WindowReport>) -> Self {
        LastReport {
            text: windows.iter().map(ToString::to_string).collect(),
            good: windows.iter().all(|window| window.verdict.is_good()),
            windows,
        }
    }

    /// The report on these VIPs, or on all if none is named; none if it is empty.
    pub fn of(mut self, vips: &[IpAddr]) -> Option<Self> {
        (self.windows).retain(|window| vips.is_empty() || vips.contains(&window.vip));
        (!self.windows.is_empty()).then(|| LastReport::new(self.windows))
    }
}

/// The last gate's report; `None` if there was none since the node started.
pub(crate) fn last_report() -> Result<Option<LastReport>, GraceError> {
    let path = report_path()?;
    match files::read(&path, LIMIT) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.is_absence() => Ok(None),
        Err(error) => Err(RunError::from(error).into()),
    }
}

/// Stores the report if possible: the gate is replaced or removed in any case.
pub(super) fn keep_report(gate: &Gate) {
    if let Err(error) = try_keep_report(gate) {
        warn!(error = chain(&error), "how the windows ended is not kept");
    }
}

fn try_keep_report(gate: &Gate) -> Result<(), GraceError> {
    let path = report_path()?;
    let failed = |source| GraceError::File {
        path: path.clone(),
        source,
    };
    let mut paths = PathFinder::new(0).map_err(failed)?;
    let windows = gate.report(&mut paths)?;
    // A fence alone has nothing to report.
    if windows.is_empty() {
        return Ok(());
    }
    let json =
        serde_json::to_vec(&LastReport::new(windows)).map_err(|error| failed(error.into()))?;
    files::write_whole(&path, &json, PRIVATE).map_err(failed)
}

fn report_path() -> Result<PathBuf, GraceError> {
    let cookie = netns::cookie().map_err(GraceError::Namespace)?;
    Ok(run::file(&format!("grace-{cookie}.json"))?)
}

/// Removes every gate of this network namespace, of any version and in any state, open
/// windows or not; and what is pinned for network namespaces that are gone. The number
/// of pins and filters.
///
/// # Errors
/// If another process holds the gate for too long, or the kernel keeps a pin or filter.
pub async fn cleanup() -> Result<usize, GraceError> {
    let _lock = ProcessLock::Gate.take(TIMEOUT).await?;
    let mut removed = 0;
    for pins in Pins::all_versions_here()? {
        removed += gate::detach(&pins).await?;
    }
    // Filters whose pins are gone.
    removed += gate::detach_filters(&[]).await?;
    let living = netns::existing_cookies().map_err(GraceError::Namespace)?;
    for (cookie, versions) in pins::all()? {
        if !living.contains(&cookie) {
            for pins in versions {
                removed += pins.remove()?;
            }
        }
    }
    pins::remove_empty()?;
    Ok(removed)
}

/// Longer than a keeper takes to notice that the gate is gone, and longer than [`ANSWERS_TIMEOUT`].
const KEEPER_TIMEOUT: Duration = Duration::from_secs(20);

const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Waits until the keeper of a removed gate has ended. This does not take the keeper's lock: a keeper
/// that is started in the meantime would find it taken, and exit.
///
/// # Errors
/// If it still runs after [`KEEPER_TIMEOUT`] and no window was opened meanwhile.
pub(crate) async fn keeper_ended() -> Result<(), GraceError> {
    let until = Instant::now() + KEEPER_TIMEOUT;
    loop {
        let who = ProcessLock::Keeper.holders()?;
        if who.is_empty() {
            return Ok(());
        }
        if Instant::now() >= until {
            let _lock = ProcessLock::Gate.take(TIMEOUT).await?;
            return match Gate::in_force()? {
                Some(_) => Ok(()),
                None => Err(GraceError::Keeper { who }),
            };
        }
        sleep(POLL_INTERVAL).await;
    }
}

/// How long [`await_answers`] waits for lockd.
const ANSWERS_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits until lockd has answered the calls that have reached it so far, so that they are counted. If
/// it does not, the calls count as not answered.
pub(super) async fn await_answers() {
    if let Err(error) = pass_queue(ANSWERS_TIMEOUT).await {
        warn!(%error, "lockd did not answer the queued calls in time");
    }
}
