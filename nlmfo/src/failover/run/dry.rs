//! Dry runs: what the phases would do. They change nothing.

use anyhow::Context;

use super::{release, takeover};
use crate::exit::{Exit, Failure};
use crate::failover::options::Options;
use crate::failover::record::Record;
use crate::failover::report::ReleaseReport;
use crate::failover::takeover_plan::PlanReport;
use crate::failover::watch::{Watch, observe};
use crate::grace::fence::Fences;
use crate::kernel::path::PathFinder;
use crate::kernel::preflight::Facts;

/// The dry runs of both phases.
///
/// # Errors
/// If the kernel's lists or a configuration cannot be read.
pub async fn both(
    options: &Options,
    facts: &Facts,
    watch: &mut Watch,
) -> Result<(ReleaseReport, PlanReport), Failure> {
    let mut plan = release::plan(options);
    plan.dry_run = true;
    plan.begun = release::begun(&options.vips)?;
    let mut paths = PathFinder::new(0).context("cannot read the list of mounted filesystems")?;
    let mut fences = Fences::default();
    let released =
        crate::failover::release::run(&plan, facts, watch, &mut paths, &mut fences).await;
    let (released, _) = released.map_err(|error| Failure::new(Exit::CouldNotRun, error))?;
    let plan = takeover::plan(options, None)?;
    Ok((released, PlanReport::look(&plan, facts, watch).await?))
}

/// The dry run of a takeover.
pub(super) async fn takeover(
    options: &Options,
    expect: Option<Record>,
) -> Result<PlanReport, Failure> {
    let (facts, mut watch) = observe()?;
    let plan = takeover::plan(options, expect)?;
    Ok(PlanReport::look(&plan, &facts, &mut watch).await?)
}
