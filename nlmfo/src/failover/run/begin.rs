//! The beginning of a failover: one run at a time for each VIP.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;

use super::takeover::ensure_ready;
use crate::exit::{Exit, Failure};
use crate::failover::exclusive::Working;
use crate::failover::options::{Options, Task};
use crate::failover::watch::observe;
use crate::failover::window::{self, OpenError};
use crate::grace::{GraceError, leftovers, method, scope, standing};
use crate::kernel::path::PathFinder;

/// What a run holds while no other run works on its VIPs.
pub struct Begin {
    /// None for a dry run.
    pub working: Option<Working>,
    /// Whether it has waited for another run, with windows that it opened.
    pub has_opened: bool,
}

/// Waits until no other run works on the VIPs. A takeover waits in grace: the VIPs may come up at any
/// moment.
pub async fn begin(options: &Options) -> Result<Begin, Failure> {
    let vips = &options.vips;
    let mut has_opened = false;
    if options.dry_run {
        return Ok(Begin {
            working: None,
            has_opened,
        });
    }
    let begun = match options.task {
        Task::Takeover => match Working::begin(vips, Duration::ZERO).await {
            Err(error) if error.is_busy() => {
                let standing = standing::of(vips)?;
                has_opened = standing.iter().all(|one| one.grace.is_none());
                open_windows(options).await?;
                Working::begin(vips, options.takeover.grace).await
            }
            begun => begun,
        },
        _ => Working::begin(vips, options.release.deadline).await,
    };
    let working = begun.map_err(|error| Failure::new(Exit::CouldNotRun, error))?;
    Ok(Begin {
        working: Some(working),
        has_opened,
    })
}

async fn open_windows(options: &Options) -> Result<(), Failure> {
    let plan = method::Plan {
        vips: options.vips.clone(),
        lasting: options.takeover.grace,
        scope: scope::of_folders(&options.takeover.filesystems)?,
        lockd_later: options.takeover.wait_services.is_some(),
    };
    if plan.lockd_later {
        let (facts, _) = observe()?;
        window::begin(&plan, &facts).await?;
        return Ok(());
    }
    ensure_ready(options).await?;
    let (facts, mut watch) = observe()?;
    match window::open(&plan, &facts, &mut watch).await {
        // The other run was a takeover, and has ended the window.
        Ok(_) | Err(OpenError::Grace(GraceError::EndedEarly(_))) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Ends windows that were opened for a takeover which was then refused.
pub async fn end_windows(vips: &[IpAddr]) -> anyhow::Result<()> {
    let mut paths = PathFinder::new(0).context("reading the mounted filesystems")?;
    leftovers::end(vips, 0, &mut paths).await?;
    Ok(leftovers::finish_if_over().await?)
}
