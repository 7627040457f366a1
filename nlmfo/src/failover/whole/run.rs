//! A stop, a start, or both.

use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::report::RestartReport;
use super::stop::{self, StopError};
use super::{Server, fence, start};
use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::failover::watch::Watch;
use crate::grace::fence::Fences;
use crate::kernel::preflight::Facts;
use crate::kernel::{netns, nfsd};
use crate::notify::config::Config;
use crate::notify::state_dir::StateDir;
use crate::output;
use crate::times::milliseconds;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halves {
    /// Stop and start.
    Both,
    /// Record what is held, and store the record.
    Record,
    /// The same, and stop.
    Stop,
    /// Start, unless it runs, and do all that comes after.
    Start,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub halves: Halves,
    pub state: StateDir,
    pub config: Config,
    /// Stop although clients are known that cannot reclaim.
    pub force: bool,
    /// Maximum time to follow the reclaims.
    pub deadline: Duration,
}

/// Does it. `observe` attaches the probes, which needs lockd in the kernel.
pub async fn run(
    plan: &Plan,
    server: &impl Server,
    observe: impl Fn() -> Result<(Facts, Watch), Failure>,
) -> Result<RestartReport, Failure> {
    let began = Instant::now();
    let mut report = RestartReport {
        schema: RestartReport::SCHEMA,
        node: netns::node(),
        kernel: crate::kernel::release().unwrap_or_default(),
        stop: None,
        start: None,
        stood_still_ms: None,
        took_ms: 0.0,
    };
    let mut halves = plan.halves;
    let mut stopping = None;
    if halves != Halves::Start && !nfsd::runs() {
        halves = match (halves, stop::stored(&plan.state)) {
            // An earlier run was interrupted between the two.
            (Halves::Both, Ok(Some(_))) => Halves::Start,
            (_, Err(error)) => return Err(Failure::new(Exit::CouldNotRun, error)),
            _ => {
                return Err(anyhow!(
                    "the NFS server does not run in this network namespace: there is nothing to record"
                )
                .into());
            }
        };
    }
    let mut watching = None;
    if halves != Halves::Start {
        let (facts, mut watch) = observe()?;
        let prepared = match halves {
            Halves::Record => Vec::new(),
            _ => server.prepare().await,
        };
        let since = Instant::now();
        let lasting = match halves {
            Halves::Record => fence::LASTING_ALONE,
            _ => fence::LASTING,
        };
        let (mut fences, unfenced) = match fence::raise(lasting).await {
            Ok(fences) => (fences, None),
            Err(error) => (Fences::default(), Some(error)),
        };
        let half = stop::Plan {
            unfenced,
            state: plan.state.clone(),
            kernel: facts.release.clone(),
        };
        let recorded = stop::record(server, &half, &mut watch).map_err(of_stop)?;
        // Until the server runs in grace.
        if halves == Halves::Record {
            fences.keep();
            report.stop = Some(recorded.into_report());
        } else {
            let blockers = recorded.blockers(&prepared);
            if !blockers.is_empty() && !plan.force {
                return Err(of_stop(StopError::Refused(blockers)));
            }
            stopping = Some(since);
            fences.keep();
            let stopped = recorded.stop(server, &half, &mut watch).await;
            report.stop = Some(stopped.map_err(of_stop)?);
            if halves == Halves::Stop
                && let Err(error) = fence::lower().await
            {
                output::note(chain(&error));
            }
        }
        watching = Some(watch);
    }
    if matches!(halves, Halves::Both | Halves::Start) {
        let begun = start::begin(server).await.map_err(of_start)?;
        let mut watch = match watching {
            Some(watch) => watch,
            None => observe()?.1,
        };
        let half = start::Plan {
            state: plan.state.clone(),
            config: plan.config.clone(),
            deadline: plan.deadline,
        };
        let (started, over) = start::follow(&half, begun, &mut watch)
            .await
            .map_err(of_start)?;
        if start::is_used(&started) {
            start::forget(&plan.state);
        }
        report.stood_still_ms = stopping.map(|at| milliseconds(over.duration_since(at)));
        report.start = Some(started);
    }
    report.took_ms = milliseconds(began.elapsed());
    Ok(report)
}

pub(super) fn of_stop(error: StopError) -> Failure {
    let exit = match error {
        StopError::Stop(_) => Exit::NotConfirmed,
        _ => Exit::CouldNotRun,
    };
    Failure::new(exit, error)
}

pub(super) fn of_start(error: start::StartError) -> Failure {
    let exit = match error {
        start::StartError::Server(_) => Exit::CouldNotRun,
        _ => Exit::NotConfirmed,
    };
    Failure::new(exit, error)
}

/// What remains after an interruption, in words.
pub fn remains(state: &StateDir) -> String {
    let runs = match nfsd::runs() {
        true => "the NFS server runs",
        false => "the NFS server does not run",
    };
    match stop::stored(state) {
        Ok(None) => format!("{runs}; no record is stored"),
        Ok(Some(_)) => {
            format!("{runs}; the record is stored, `nlmfo restart --start-only` goes on from here")
        }
        Err(error) => format!("{runs}; {}", chain(&error)),
    }
}
