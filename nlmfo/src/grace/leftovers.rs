//! What ended windows leave behind: the gate and its counts.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::gate::{self, Gate};
use super::lock::{ProcessLock, TIMEOUT};
use super::pins::{self, Pins, State};
use super::report::WindowReport;
use super::{GraceError, window};
use crate::files::run::{self, RunError};
use crate::files::{self, LIMIT, PRIVATE};
use crate::kernel::netns;
use crate::kernel::path::PathFinder;

/// Takes the gate out of the kernel after its last window's end, and keeps the
/// windows' report for `nlmfo grace --list`.
pub async fn finish(gate: Gate) -> Result<(), GraceError> {
    gate::await_answers().await;
    keep_report(&gate)?;
    gate.detach().await?;
    Ok(())
}

/// [`finish`], if no window is open any more.
pub async fn finish_if_over() -> Result<(), GraceError> {
    let _lock = ProcessLock::Gate.take(TIMEOUT).await?;
    match Gate::in_force()? {
        Some(gate) if gate.ends()? <= window::now() => finish(gate).await,
        Some(_) => Ok(()),
        None => remove_partial().await,
    }
}

/// Removes what a loader left that died on its way; to be called with [`ProcessLock::Gate`] held.
pub(super) async fn remove_partial() -> Result<(), GraceError> {
    for pins in Pins::all_versions_here()? {
        if pins.state()? == State::Partial {
            gate::detach(&pins).await?;
        }
    }
    Ok(())
}

/// How windows ended whose gate is gone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastReport {
    /// The report for people.
    pub text: String,
    /// Whether every window was as it should be.
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

    /// What it says of these VIPs, of all if there are none; none if that is nothing.
    pub fn of(mut self, vips: &[IpAddr]) -> Option<Self> {
        (self.windows).retain(|window| vips.is_empty() || vips.contains(&window.vip));
        (!self.windows.is_empty()).then(|| LastReport::new(self.windows))
    }
}

/// The last gate's report; `None` if there was none since the node started.
pub fn last_report() -> Result<Option<LastReport>, GraceError> {
    let path = report_path()?;
    match files::read(&path, LIMIT) {
        Ok(text) => Ok(serde_json::from_slice(&text).ok()),
        Err(error) if error.is_absence() => Ok(None),
        Err(error) => Err(RunError::from(error).into()),
    }
}

pub(super) fn keep_report(gate: &Gate) -> Result<(), GraceError> {
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
pub async fn cleanup() -> Result<usize, GraceError> {
    let _lock = ProcessLock::Gate.take(TIMEOUT).await?;
    let mut removed = 0;
    for pins in Pins::all_versions_here()? {
        removed += gate::detach(&pins).await?;
    }
    // Filters whose pins are gone.
    removed += gate::detach_filters(&[]).await?;
    let living = netns::living_cookies().map_err(GraceError::Namespace)?;
    for (cookie, versions) in pins::all()? {
        if !living.contains(&cookie) {
            for pins in versions {
                removed += pins.remove()?;
            }
        }
    }
    Ok(removed)
}
