//! `nlmfo failover`: move a VIP's locks.

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use super::{print_json, require_root};
use crate::cli::{FailoverArgs, Phase};
use crate::exit::{Exit, Failure};
use crate::failover::exclusive::Exclusive;
use crate::failover::release::{self, Plan, RunError};
use crate::failover::report::ReleaseReport;
use crate::failover::watch::Watch;
use crate::kernel::path::PathFinder;
use crate::kernel::preflight::Facts;
use crate::kernel::{self, lockd::LockdError};
use crate::observe::programs::{ObserveError, Programs, probed_functions};
use crate::observe::snapshot::Snapshots;

pub fn run(args: &FailoverArgs) -> Result<Exit, Failure> {
    require_root()?;
    let Phase::Release = args.phase;
    let plan = plan(args);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime")?;
    let report = runtime.block_on(release_or_interrupt(&plan))?;
    if args.json {
        print_json(&report)?;
    } else {
        print!("{report}");
    }
    Ok(match report.confirmed || report.dry_run {
        true => Exit::Done,
        false => Exit::NotConfirmed,
    })
}

fn plan(args: &FailoverArgs) -> Plan {
    let mut vips = args.vip.clone();
    vips.sort_unstable();
    vips.dedup();
    Plan {
        vips,
        record: args.record.clone(),
        dry_run: args.dry_run,
        filesystems: args.unlock_filesystem.clone(),
        reboot_notice: args.reboot_notice,
        deadline: args.deadline,
    }
}

/// Dropping the release on a signal takes everything of ours out of the kernel:
/// probes go with their file descriptors, routes with their guard.
async fn release_or_interrupt(plan: &Plan) -> Result<ReleaseReport, Failure> {
    let mut terminate =
        signal(SignalKind::terminate()).context("listening for the signal to terminate")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for ctrl-C")?;
    tokio::select! {
        done = release(plan) => done,
        _ = interrupt.recv() => Err(interrupted("ctrl-C")),
        _ = terminate.recv() => Err(interrupted("SIGTERM")),
    }
}

fn interrupted(by: &str) -> Failure {
    let error = anyhow::anyhow!(
        "interrupted by {by}: locks may be released in part, and nothing is confirmed; \
         run it again"
    );
    Failure::new(Exit::NotConfirmed, error)
}

async fn release(plan: &Plan) -> Result<ReleaseReport, Failure> {
    let _exclusive = (!plan.dry_run).then(Exclusive::take).transpose();
    let _exclusive = _exclusive.map_err(|error| Failure::new(Exit::CouldNotRun, error))?;
    let functions: Vec<&str> = probed_functions().collect();
    let facts = Facts::gather(&functions);
    if !facts.lockd.is_available() {
        return Err(Failure::new(Exit::Lacking, LockdError::NotLoaded));
    }
    let layout = match &facts.layout {
        Some(layout) => *layout,
        // Once more, for the error with its reason.
        None => kernel::layout::load().map_err(ObserveError::from)?,
    };
    let snapshots = Snapshots::attach(Programs::load(&layout)?)?;
    let mut watch = Watch::attach(snapshots, facts.netns as u32)?;
    let mut paths = PathFinder::new(0).context("reading the mounted filesystems")?;
    release::run(plan, &facts, &mut watch, &mut paths)
        .await
        .map_err(|error| {
            let exit = match error {
                RunError::Before(_) => Exit::CouldNotRun,
                RunError::After(_) => Exit::NotConfirmed,
            };
            Failure::new(exit, error)
        })
}
