//! The beginning of a failover: one run at a time for each VIP.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;

use super::{ensure_ready, observe};
use crate::cli::{FailoverArgs, Phase};
use crate::exit::{Exit, Failure};
use crate::failover::exclusive::Working;
use crate::failover::window::{self, OpenError};
use crate::grace::{GraceError, leftovers, scope, standing, way};
use crate::kernel::path::PathFinder;

/// What a command has while nobody else works on its VIPs.
pub struct Begin {
    /// None for a dry run.
    pub working: Option<Working>,
    /// Whether it has waited for another run, behind windows that it opened.
    pub has_opened: bool,
}

/// Waits until nobody else works on the VIPs. What a takeover waits for, it waits for in grace:
/// the VIPs may be up at any moment.
pub async fn begin(args: &FailoverArgs, vips: &[IpAddr]) -> Result<Begin, Failure> {
    let mut has_opened = false;
    if args.release.dry_run {
        return Ok(Begin {
            working: None,
            has_opened,
        });
    }
    let begun = match args.phase {
        Some(Phase::Takeover) => match Working::begin(vips, Duration::ZERO).await {
            Err(error) if error.is_busy() => {
                let standing = standing::of(vips)?;
                has_opened = standing.iter().all(|one| one.grace.is_none());
                let plan = window_plan(args, vips)?;
                if plan.lockd_later {
                    let (facts, _) = observe()?;
                    window::begin(&plan, &facts).await?;
                } else {
                    ensure_ready(args, vips).await?;
                    let (facts, mut watch) = observe()?;
                    match window::open(&plan, &facts, &mut watch).await {
                        // The other run was a takeover, and has ended the window.
                        Ok(_) | Err(OpenError::Grace(GraceError::EndedEarly(_))) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                Working::begin(vips, args.takeover.grace).await
            }
            begun => begun,
        },
        _ => Working::begin(vips, args.release.deadline).await,
    };
    let working = begun.map_err(|error| Failure::new(Exit::CouldNotRun, error))?;
    Ok(Begin {
        working: Some(working),
        has_opened,
    })
}

/// Ends windows that were opened for a takeover which was then refused.
pub async fn end_windows(vips: &[IpAddr]) -> anyhow::Result<()> {
    let mut paths = PathFinder::new(0).context("reading the mounted filesystems")?;
    leftovers::end(vips, 0, &mut paths).await?;
    Ok(leftovers::finish_if_over().await?)
}

/// The window of a takeover.
fn window_plan(args: &FailoverArgs, vips: &[IpAddr]) -> Result<way::Plan, Failure> {
    Ok(way::Plan {
        vips: vips.to_vec(),
        lasting: args.takeover.grace,
        scope: scope::of_folders(&args.takeover.filesystem)?,
        lockd_later: args.takeover.wait_services.is_some(),
    })
}
