//! The release phase, with its fence and record.

use std::net::IpAddr;

use anyhow::Context;

use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::failover::exclusive::Working;
use crate::failover::options::{Options, ReleaseOptions};
use crate::failover::record::Record;
use crate::failover::release::{self, Begun, Plan, RunError};
use crate::failover::report::ReleaseReport;
use crate::failover::watch::observe;
use crate::files::Place;
use crate::grace::fence::{self, Fences};
use crate::grace::gate::Gate;
use crate::grace::standing;
use crate::kernel::netns;
use crate::kernel::path::PathFinder;
use crate::observe::lockd_queue::pass_queue;
use crate::times::whole_milliseconds;

/// The result of a release, and the record for the takeover.
pub struct Released {
    pub report: ReleaseReport,
    pub record: Option<Record>,
}

/// Releases the VIPs here. `working` is none in a dry run.
///
/// # Errors
/// With [`Exit::NotConfirmed`] if something may be released.
pub async fn run(options: &Options, working: Option<&Working>) -> Result<Released, Failure> {
    let vips = &options.vips;
    // Before anything is changed.
    let record = record_place(&options.release)?;
    let (facts, mut watch) = observe()?;
    let mut begun = begun(vips)?;
    if options.task.takes_over() {
        // Since a takeover started here, only reclaims were granted.
        let standing = standing::of(vips)?;
        let in_grace = standing.iter().filter(|one| one.grace.is_some());
        begun.fenced.extend(in_grace.map(|one| one.vip));
    }
    if let Some(working) = working {
        let earlier = record.as_ref().and_then(Place::earlier);
        begun.forget_earlier_moves(vips, earlier, working)?;
    }
    let mut fences = raise_fence(options).await?;
    let mut plan = plan(options);
    if !options.dry_run {
        // By then lockd has answered what reached it before the fence.
        let passed = pass_queue(options.release.deadline).await;
        plan.blocked = passed.err().map(|error| chain(&error));
    }
    plan.record = record;
    plan.begun = begun;
    let mut paths = PathFinder::new(0).context("cannot read the list of mounted filesystems")?;
    let done = release::run(&plan, &facts, &mut watch, &mut paths, &mut fences).await;
    let (mut report, record) = done.map_err(|error| {
        let exit = match error {
            RunError::Before(_) => Exit::CouldNotRun,
            RunError::After(_) => Exit::NotConfirmed,
        };
        Failure::new(exit, error)
    })?;
    let standing = standing::of(&report.fenced).unwrap_or_default();
    let longest = standing.iter().filter_map(|one| one.fence).max();
    report.fenced_for_ms = longest.map_or(0, whole_milliseconds);
    Ok(Released { report, record })
}

/// How the VIPs are released. The record, and what an earlier run has begun, are added later.
pub(super) fn plan(options: &Options) -> Plan {
    let release = &options.release;
    Plan {
        vips: options.vips.clone(),
        record: None,
        state: options.state.clone(),
        keeps_record: options.task.takes_over(),
        begun: Begun::default(),
        dry_run: options.dry_run,
        filesystems: release.filesystems.clone(),
        reboot_notice: release.reboot_notice,
        without_nfs4: release.without_nfs4,
        deadline: release.deadline,
        blocked: None,
    }
}

/// The VIPs that an earlier run has closed to new locks.
///
/// # Errors
/// If the gate cannot be read.
pub fn begun(vips: &[IpAddr]) -> Result<Begun, Failure> {
    let fenced = match Gate::in_force()? {
        Some(gate) => gate.fenced()?,
        None => Vec::new(),
    };
    let is_absent = |vip: &&IpAddr| !netns::has_address(**vip).unwrap_or(true);
    Ok(Begun {
        fenced: (vips.iter().copied().filter(|vip| fenced.contains(vip))).collect(),
        absent: vips.iter().filter(is_absent).copied().collect(),
    })
}

/// Where the record goes, if requested.
///
/// # Errors
/// If another file is there.
pub fn record_place(options: &ReleaseOptions) -> Result<Option<Place<Record>>, Failure> {
    let place = options.record.as_deref().map(Record::place).transpose();
    Ok(place.map_err(anyhow::Error::from)?)
}

/// Fences the VIPs that clients can reach here, unless no fence is wanted.
async fn raise_fence(options: &Options) -> Result<Fences, Failure> {
    let (Some(lasting), false) = (options.release.fence, options.dry_run) else {
        return Ok(Fences::default());
    };
    let is_here = |vip: &&IpAddr| netns::has_address(**vip).unwrap_or(true);
    let here: Vec<IpAddr> = options.vips.iter().filter(is_here).copied().collect();
    if here.is_empty() {
        return Ok(Fences::default());
    }
    let raised = fence::raise(&here, lasting, options.release.deadline).await;
    raised.map_err(|error| {
        let Failure { exit, error } = error.into();
        let remedy = "nothing was released: the VIP cannot be fenced; block its lock traffic yourself and \
                      give --no-fence";
        Failure::new(exit, error.context(remedy))
    })
}
