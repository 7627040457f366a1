//! The reports of a failover: stored before they are printed.

use std::net::IpAddr;
use std::path::PathBuf;

use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::failover::kept::Kept;
use crate::failover::options::{Options, Task};
use crate::failover::pair::report::PairReport;
use crate::failover::report::ReleaseReport;
use crate::failover::takeover_plan::PlanReport;
use crate::failover::takeover_report::TakeoverReport;
use crate::times;

/// The reports so far.
pub struct Reports {
    pub release: Option<ReleaseReport>,
    pub takeover: Option<TakeoverReport>,
    pub pair: Option<PairReport>,
    /// The plan of a takeover's dry run.
    pub plan: Option<PlanReport>,
    vips: Vec<IpAddr>,
    operation: &'static str,
    /// False for a dry run.
    is_kept: bool,
}

impl Reports {
    pub fn new(options: &Options) -> Self {
        Reports {
            release: None,
            takeover: None,
            pair: None,
            plan: None,
            vips: options.vips.clone(),
            operation: match options.task {
                Task::Move(_) => "move",
                Task::Release => "release",
                Task::Takeover => "takeover",
                Task::Both => "failover",
            },
            is_kept: !options.dry_run,
        }
    }

    /// Stores the reports so far, and returns the path.
    pub(super) fn keep(&self, exit: Option<Exit>, error: Option<&str>) -> Option<PathBuf> {
        let kept = Kept {
            schema: Kept::SCHEMA,
            operation: self.operation,
            vips: &self.vips,
            at: times::now(),
            exit_status: exit.map(|exit| exit as u8),
            error,
            release: self.release.as_ref(),
            takeover: self.takeover.as_ref(),
            pair: self.pair.as_ref(),
        };
        self.is_kept.then(|| kept.keep()).flatten()
    }

    /// Stores the reports and how the run ended, and returns the path.
    pub fn keep_at_end(&self, ended: &Result<Exit, Failure>) -> Option<PathBuf> {
        let (exit, error) = match ended {
            Ok(exit) => (*exit, None),
            Err(failure) => (failure.exit, Some(chain(&*failure.error))),
        };
        self.keep(Some(exit), error.as_deref())
    }
}
