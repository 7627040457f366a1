//! The takeover phase, from the options to the report.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use crate::exit::{Exit, Failure};
use crate::failover::notification::Notifier;
use crate::failover::options::{Notify, Options};
use crate::failover::record::Record;
use crate::failover::services::{self, Purpose, look};
use crate::failover::takeover::{self, Plan, RunError};
use crate::failover::takeover_report::TakeoverReport;
use crate::failover::watch::observe;
use crate::grace::scope;
use crate::kernel::lockd;
use crate::notify::config::Config;

/// Time between two checks whether lockd is loaded.
const LOCKD_POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Takes the VIPs over here.
///
/// # Errors
/// With [`Exit::NotConfirmed`] if grace was started.
pub async fn run(options: &Options, expect: Option<Record>) -> Result<TakeoverReport, Failure> {
    if let Some(max_wait) = options.takeover.wait_services {
        wait_for_lockd(max_wait).await;
    }
    let (facts, mut watch) = observe()?;
    let plan = plan(options, expect)?;
    (takeover::run(&plan, &facts, &mut watch).await).map_err(|error| match error {
        error @ RunError::NotReady(_) => {
            let context = "nothing was changed: grace was not started, and no client was notified";
            let error = anyhow::Error::new(error).context(context);
            Failure::new(Exit::Unsupported, error)
        }
        RunError::Before(error) => {
            let Failure { exit, error } = error.into();
            Failure::new(exit, error.context("grace was not started"))
        }
        error @ RunError::After(_) => Failure::new(Exit::NotConfirmed, error),
    })
}

/// How the VIPs are taken over.
pub(super) fn plan(options: &Options, expect: Option<Record>) -> Result<Plan, Failure> {
    let takeover = &options.takeover;
    Ok(Plan {
        vips: options.vips.clone(),
        expect,
        grace: takeover.grace,
        scope: scope::of_folders(&takeover.filesystems)?,
        wait_services: takeover.wait_services,
        wait_address: takeover.wait_address,
        notifier: notifier(options)?,
        state: options.state.clone(),
    })
}

fn notifier(options: &Options) -> Result<Notifier, Failure> {
    Ok(match &options.takeover.notify {
        Notify::Nobody => Notifier::Disabled,
        Notify::Program(program) => Notifier::Program(program.clone()),
        Notify::Nlmfo => {
            let config = Config::read(options.takeover.config.as_deref());
            Notifier::Own {
                state: options.state.clone(),
                config: config.map_err(anyhow::Error::from)?,
            }
        }
    })
}

/// Waits until lockd is loaded, so that it can be observed.
async fn wait_for_lockd(max_wait: Duration) {
    let until = Instant::now() + max_wait;
    while !lockd::is_loaded() && Instant::now() < until {
        sleep(LOCKD_POLL_INTERVAL).await;
    }
}

/// An error if services on this node are not ready for the takeover.
pub(super) async fn ensure_ready(options: &Options) -> Result<(), Failure> {
    let purpose = Purpose {
        vips: options.vips.clone(),
        exports_now: options.takeover.wait_address.is_none(),
        unseen: None,
    };
    let max_wait = options.takeover.wait_services.unwrap_or_default();
    let blockers = services::blockers(&look::wait(&options.state, &purpose, max_wait).await);
    if blockers.is_empty() {
        return Ok(());
    }
    let error = anyhow::Error::new(RunError::NotReady(blockers));
    Err(Failure::new(
        Exit::Unsupported,
        error.context("nothing was changed"),
    ))
}
