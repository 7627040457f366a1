//! A stop, a start, or both.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::leases::Paused;
use super::report::{RestartReport, StartReport, StopReport};
use super::stop::{self, StopError};
use super::{Server, ServerError, delegations, fence, identity, leases, reserve, start};
use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::failover::watch::Watch;
use crate::grace::fence::Fences;
use crate::kernel::nfsd::{self, Nfsd};
use crate::kernel::preflight::Facts;
use crate::kernel::{lockd, netns};
use crate::notify::config::Config;
use crate::notify::state_dir::StateDir;
use crate::output;
use crate::server::wake_lockd;
use crate::times::milliseconds;

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Halves {
    /// Stop and start.
    Both,
    /// Pause leases for a start by another program.
    Prepare,
    /// Record what is held, and store the record.
    Record,
    /// The same, and stop.
    Stop,
    /// Start it unless it runs, notify its clients, and follow the reclaims.
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
    /// The addresses that move, if the server is to start on another node; empty: all that clients
    /// use.
    pub moving: Option<Vec<IpAddr>>,
}

/// Runs it. `observe` attaches the probes, which needs lockd in the kernel.
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
        prepared: None,
        stop: None,
        start: None,
        stood_still_ms: None,
        took_ms: 0.0,
    };
    if plan.halves == Halves::Prepare {
        report.prepared = Some(prepare(&plan.state).await?);
        report.took_ms = milliseconds(began.elapsed());
        return Ok(report);
    }
    let mut halves = plan.halves;
    if halves != Halves::Start && !nfsd::runs() {
        halves = match (halves, stop::stored(&plan.state)) {
            // An earlier run was interrupted between the two.
            (Halves::Both, Ok(Some(_)) | Err(_)) => Halves::Start,
            // Also if the command is run again.
            (Halves::Stop, Ok(Some(record))) if plan.moving.is_some() => {
                let (_, mut watch) = observe()?;
                let again = stop::again(server, &plan.state, &record, &mut watch);
                report.stop = Some(again.map_err(of_stop)?);
                said(fence::lower().await);
                said(fence::finish().await);
                report.took_ms = milliseconds(began.elapsed());
                return Ok(report);
            }
            _ => {
                return Err(anyhow!(
                    "the NFS server does not run in this network namespace: there is nothing to record"
                )
                .into());
            }
        };
    }
    let (mut stopping, mut watching, mut paused) = (None, None, None);
    if halves != Halves::Start {
        let stopped = stop_half(plan, halves, server, &observe).await?;
        report.stop = Some(stopped.report);
        (stopping, watching, paused) = (stopped.at, Some(stopped.watch), stopped.paused);
    }
    if matches!(halves, Halves::Both | Halves::Start) {
        let (started, over) = start_half(plan, server, &observe, watching, paused).await?;
        report.stood_still_ms = stopping.map(|at| milliseconds(over.duration_since(at)));
        report.start = Some(started);
    }
    report.took_ms = milliseconds(began.elapsed());
    Ok(report)
}

/// Pauses leases for a start by another program. False if the record does not allow that.
async fn prepare(state: &StateDir) -> Result<bool, Failure> {
    let wanted = stop::allows_pause(state);
    if wanted {
        let paused = leases::try_pause().await.map_err(anyhow::Error::from)?;
        paused.keep();
    }
    Ok(wanted)
}

/// What the stop leaves to the start.
struct Stopped {
    report: StopReport,
    /// When the stop began; none if the server was only recorded.
    at: Option<Instant>,
    watch: Watch,
    paused: Option<Paused>,
}

/// Records what is held, and stops the server unless `halves` is [`Halves::Record`].
async fn stop_half(
    plan: &Plan,
    halves: Halves,
    server: &impl Server,
    observe: &impl Fn() -> Result<(Facts, Watch), Failure>,
) -> Result<Stopped, Failure> {
    let (facts, mut watch) = observe()?;
    let prepared = match halves {
        Halves::Record => Vec::new(),
        _ => server.prepare().await,
    };
    let identity = identity::of_server().await;
    let half = stop::Plan {
        state: plan.state.clone(),
        kernel: facts.release.clone(),
        partial: true,
        identity: identity.clone().ok().flatten(),
        moving: plan.moving.clone(),
    };
    let mut paused = leases::pause().await;
    delegations::recall(&mut watch).await;
    let mut at = None;
    let report = if halves == Halves::Record {
        // Until the server runs again, in grace.
        let (mut fences, unfenced) = raise(fence::LASTING_ALONE).await;
        let recorded = stop::record(server, &half, &mut watch).map_err(of_stop)?;
        fences.keep();
        let stored = recorded.store(&half, unfenced);
        stored.map_err(|error| of_stop(error.into()))?
    } else {
        let recorded = stop::record(server, &half, &mut watch).map_err(of_stop)?;
        let blockers = recorded.blockers(&half, &prepared);
        if !blockers.is_empty() && !plan.force {
            reserve::take_all(&plan.state);
            return Err(of_stop(StopError::Refused(blockers)));
        }
        let (mut fences, unfenced) = raise(fence::LASTING).await;
        at = Some(Instant::now());
        fences.keep();
        let stopped = recorded.stop(server, &half, unfenced, &mut watch).await;
        if stopped.is_err() && nfsd::runs() {
            // The server continues to serve.
            reserve::take_all(&plan.state);
            said(fence::withdraw().await);
        }
        // It runs in parallel, so that it does not delay the start.
        std::thread::spawn(wake_lockd);
        let mut stopped = stopped.map_err(of_stop)?;
        if let Err(reason) = identity {
            stopped
                .notes
                .push(format!("the server scope is not known: {reason}"));
        }
        if halves == Halves::Stop {
            said(fence::lower().await);
            said(fence::finish().await);
        }
        stopped
    };
    // Clients may come back before the other half has begun.
    let is_for_here = halves != Halves::Both && plan.moving.is_none();
    if is_for_here && stop::allows_pause(&plan.state) {
        paused = paused.and_then(Paused::keep);
    }
    Ok(Stopped {
        report,
        at,
        watch,
        paused,
    })
}

/// Starts the server and follows the reclaims. `watching` and `paused` are those of a stop in this run.
/// Also returns when both grace periods were over.
async fn start_half(
    plan: &Plan,
    server: &impl Server,
    observe: &impl Fn() -> Result<(Facts, Watch), Failure>,
    mut watching: Option<Watch>,
    paused: Option<Paused>,
) -> Result<(StartReport, Instant), Failure> {
    reserve::free(&plan.state);
    // It was prepared before the stop.
    let prepare = watching.is_none();
    let paused = leases::pause_if(stop::allows_pause(&plan.state), paused).await;
    // Clients say what they give up as soon as the server answers.
    match &mut watching {
        Some(watch) => follow(watch),
        None if lockd::is_loaded() && Nfsd::mounted().is_ok() => {
            watching = following(observe).ok();
        }
        None => {}
    }
    // After a boot, lockd and nfsd are loaded when it starts: reclaims may have been refused before the
    // probes are there.
    let late = || -> Result<Watch, Failure> {
        let (_, mut watch) = observe()?;
        watch.follow_unlocks();
        Ok(watch)
    };
    let attached = |_| watching.map_or_else(late, Ok);
    let begun = start::begin(server, prepare, attached).await;
    let (begun, watch) = begun.map_err(of_start)?;
    let mut watch = watch?;
    let half = start::Plan {
        state: plan.state.clone(),
        config: plan.config.clone(),
        fences_nfs4: false,
        deadline: plan.deadline,
    };
    let (started, over) = start::follow(&half, begun, &mut watch)
        .await
        .map_err(of_start)?;
    said(fence::finish().await);
    drop(paused);
    if start::is_used(&started) {
        start::forget(&plan.state);
    }
    reserve::take_all(&plan.state);
    Ok((started, over))
}

/// Attaches the probes, before the server answers.
pub(super) fn following(
    observe: impl Fn() -> Result<(Facts, Watch), Failure>,
) -> Result<Watch, Failure> {
    let (_, mut watch) = observe()?;
    follow(&mut watch);
    Ok(watch)
}

/// Attaches those on what clients give up.
fn follow(watch: &mut Watch) {
    watch.follow_unlocks();
    watch.follow_reclaims4();
}

/// Without a fence, the reason.
async fn raise(lasting: Duration) -> (Fences, Option<String>) {
    match fence::raise(lasting).await {
        Ok(fences) => (fences, None),
        Err(error) => (Fences::default(), Some(error)),
    }
}

fn said(done: Result<(), ServerError>) {
    if let Err(error) = done {
        output::note(chain(&error));
    }
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
        start::StartError::Server(_) | start::StartError::Appear(_) => Exit::CouldNotRun,
        _ => Exit::NotConfirmed,
    };
    Failure::new(exit, error)
}

/// What remains after an interruption, as text.
pub fn remains(state: &StateDir) -> String {
    let runs = match nfsd::runs() {
        true => "the NFS server runs",
        false => "the NFS server does not run",
    };
    match stop::stored(state) {
        Ok(None) => format!("{runs}; no record is stored"),
        Ok(Some(_)) => {
            format!(
                "{runs}; the record is stored, `nlmfo restart --start-only` continues from here"
            )
        }
        Err(error) => format!("{runs}; {}", chain(&error)),
    }
}
