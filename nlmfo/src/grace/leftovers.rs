//! What is left of windows that have ended: the gate, and what it had counted.

use std::path::PathBuf;

use super::gate::{self, Gate};
use super::lock::Lock;
use super::pins::{self, Pins};
use super::{GraceError, window};
use crate::kernel::netns;
use crate::kernel::path::PathFinder;

/// Takes the gate out of the kernel after its last window's end, and keeps the
/// windows' report for `nlmfo grace --list`.
pub async fn finish(gate: Gate) -> Result<(), GraceError> {
    keep_report(&gate)?;
    gate.detach().await?;
    Ok(())
}

/// [`finish`], if no window is open any more.
pub async fn finish_if_over() -> Result<(), GraceError> {
    let _lock = Lock::Gate.take()?;
    match Gate::in_force()? {
        Some(gate) if gate.ends()? <= window::now() => finish(gate).await,
        _ => Ok(()),
    }
}

/// The report of windows that have ended, as JSON; `None` if there were none since
/// the node started.
pub fn last_report() -> Result<Option<serde_json::Value>, GraceError> {
    let path = report_path()?;
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(serde_json::from_str(&text).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(GraceError::File { path, source }),
    }
}

fn keep_report(gate: &Gate) -> Result<(), GraceError> {
    let path = report_path()?;
    let failed = |source| GraceError::File {
        path: path.clone(),
        source,
    };
    let mut paths = PathFinder::new(0).map_err(failed)?;
    let report = serde_json::to_vec(&gate.report(&mut paths)?).map_err(|e| failed(e.into()))?;
    std::fs::write(&path, report).map_err(failed)
}

fn report_path() -> Result<PathBuf, GraceError> {
    let cookie = netns::cookie().map_err(GraceError::Namespace)?;
    Ok(PathBuf::from(format!("/run/nlmfo-grace-{cookie}.json")))
}

/// Removes every gate of this network namespace, of any version and in any state, open
/// windows or not; and what is pinned for network namespaces that are gone. The number
/// of pins and filters.
pub async fn cleanup() -> Result<usize, GraceError> {
    let _lock = Lock::Gate.take()?;
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
