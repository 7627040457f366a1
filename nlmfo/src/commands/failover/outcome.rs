//! The result of a failover: stored first, then printed, then returned as the exit status.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::causes::chain;
use crate::cli::{FailoverArgs, Phase};
use crate::exit::{Exit, Failure};
use crate::failover::kept::Kept;
use crate::failover::pair::report::PairReport;
use crate::failover::report::ReleaseReport;
use crate::failover::takeover_plan::PlanReport;
use crate::failover::takeover_report::TakeoverReport;
use crate::times;
use crate::{interrupt, output};

/// The reports so far.
pub struct Outcome {
    pub vips: Vec<IpAddr>,
    pub release: Option<ReleaseReport>,
    pub takeover: Option<TakeoverReport>,
    pub pair: Option<PairReport>,
    /// The plan of a takeover's dry run.
    pub plan: Option<PlanReport>,
    operation: &'static str,
    json: bool,
    /// False for a dry run.
    is_kept: bool,
}

impl Outcome {
    pub fn new(args: &FailoverArgs, vips: &[IpAddr]) -> Self {
        Outcome {
            vips: vips.to_vec(),
            release: None,
            takeover: None,
            pair: None,
            plan: None,
            operation: match (&args.pair.to, args.phase) {
                (Some(_), _) => "move",
                (None, Some(Phase::Release)) => "release",
                (None, Some(Phase::Takeover)) => "takeover",
                (None, None) => "failover",
            },
            json: args.json,
            is_kept: !args.release.dry_run,
        }
    }

    /// Stores the result so far.
    pub fn keep(&self, exit: Option<Exit>, error: Option<&str>) -> Option<PathBuf> {
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

    /// Stores and prints the result, and returns the exit status.
    pub fn end(self, ended: Result<Exit, Failure>) -> Result<Exit, Failure> {
        let (exit, error) = match &ended {
            Ok(exit) => (*exit, None),
            Err(failure) => (failure.exit, Some(chain(&*failure.error))),
        };
        let kept = self.keep(Some(exit), error.as_deref());
        interrupt::only_words_are_left(exit as u8);
        let kept = kept.as_deref();
        match self.json {
            true => {
                let (release, takeover) = (self.release.iter(), self.takeover.iter());
                release.for_each(|one| output::report_json(kept, one));
                takeover.for_each(|one| output::report_json(kept, one));
                (self.pair.iter()).for_each(|one| output::report_json(kept, one));
                (self.plan.iter()).for_each(|one| output::report_json(kept, one));
            }
            false => output::report(kept, |out| {
                (self.release.iter()).try_for_each(|one| write!(out, "{one}"))?;
                (self.takeover.iter()).try_for_each(|one| write!(out, "{one}"))?;
                (self.pair.iter()).try_for_each(|one| write!(out, "{one}"))?;
                (self.plan.iter()).try_for_each(|one| write!(out, "{one}"))
            }),
        }
        ended
    }
}
