//! `nlmfo release`: release the state of one client, one file or one lock, and verify it.

use std::fmt::Write;

use anyhow::{Context, anyhow};
use serde::Serialize;

use super::require_root;
use crate::causes::chain;
use crate::cli::{NfsVersion, TargetedArgs};
use crate::exit::{Exit, Failure};
use crate::failover::interrupted::or_interrupt;
use crate::failover::kept::keep_as;
use crate::failover::report::Verdict;
use crate::failover::targeted::id::RowId;
use crate::failover::targeted::on::On;
use crate::failover::targeted::report::TargetedReport;
use crate::failover::targeted::select::{Asked, Wanted, Whole, listed};
use crate::failover::targeted::{self, Plan, RunError};
use crate::failover::watch::observe;
use crate::foreign::Shown;
use crate::kernel::path::PathFinder;
use crate::times;
use crate::{interrupt, output, runtime};

/// The stored report: one JSON object in `/run/nlmfo/last-release.json`.
#[derive(Serialize)]
struct Kept<'a> {
    schema: &'static str,
    /// Since 1970, in seconds.
    at: u64,
    /// What was asked for, as text.
    wanted: &'a str,
    /// The exit status; null while the release runs, and if it was killed.
    exit: Option<u8>,
    error: Option<&'a str>,
    report: Option<&'a TargetedReport>,
}

pub fn run(args: &TargetedArgs) -> Result<Exit, Failure> {
    require_root()?;
    let plan = plan(args)?;
    let keep = |exit: Option<Exit>, error: Option<&str>, report: Option<&TargetedReport>| {
        let kept = Kept {
            schema: "nlmfo.last-release/1",
            at: times::now(),
            wanted: &plan.title,
            exit: exit.map(|exit| exit as u8),
            error,
            report,
        };
        (!plan.dry_run).then(|| keep_as("release", &kept)).flatten()
    };
    // In case this process is killed.
    keep(None, None, None);
    let state = "some state may be released; run the command again";
    let done = runtime::run(or_interrupt(work(&plan), &plan.asked.vips, state))
        .context("cannot start the asynchronous runtime")?;
    let report = match done {
        Ok(report) => report,
        Err(failure) => {
            keep(Some(failure.exit), Some(&chain(&*failure.error)), None);
            return Err(failure);
        }
    };
    let exit = match report.verdict {
        Verdict::NotConfirmed => Exit::NotConfirmed,
        Verdict::Confirmed | Verdict::Planned => Exit::Done,
    };
    let kept = keep(Some(exit), None, Some(&report));
    interrupt::work_is_done(exit as u8);
    match args.json {
        true => output::report_json(kept.as_deref(), &report),
        false => output::report(kept.as_deref(), |out| write!(out, "{report}")),
    }
    Ok(exit)
}

async fn work(plan: &Plan) -> Result<TargetedReport, Failure> {
    let (facts, mut watch) = observe()?;
    let mut paths = PathFinder::new(0).context("reading the mounted filesystems")?;
    let done = targeted::run(plan, &facts, &mut watch, &mut paths).await;
    done.map_err(|error| {
        let exit = match &error {
            RunError::Refused(refusal) if refusal.is_unsupported() => Exit::Unsupported,
            RunError::Unsupported(_) => Exit::Unsupported,
            RunError::After(_) => Exit::NotConfirmed,
            _ => Exit::CouldNotRun,
        };
        Failure::new(exit, error)
    })
}

fn plan(args: &TargetedArgs) -> Result<Plan, Failure> {
    let on = match &args.file {
        None => None,
        Some(path) => {
            let on = On::file(path).with_context(|| format!("looking at {}", path.shown()))?;
            Some((path, on))
        }
    };
    let mut vips = args.vip.clone();
    vips.sort_unstable();
    vips.dedup();
    let row = match &args.lock {
        Some(id) => Some(
            id.parse::<RowId>()
                .map_err(|error| anyhow!("{id}: {error}"))?,
        ),
        None => None,
    };
    let (wanted, what) = match (row, on, args.client) {
        (Some(id), _, _) => (Wanted::Row(id), format!("lock {id}")),
        (None, Some((path, on)), client) => {
            let of = client.map_or_else(String::new, |client| format!(" of {client}"));
            let wanted = Wanted::File { on, client };
            (wanted, format!("what is on {}{of}", path.shown()))
        }
        (None, None, Some(client)) => (Wanted::Client(client), format!("all of {client}")),
        // The parser asks for one of them.
        (None, None, None) => return Err(anyhow!("nothing is named to release").into()),
    };
    let through = match vips.is_empty() {
        true => String::new(),
        false => format!(" through {}", listed(&vips)),
    };
    let whole = match (&args.file, &args.unlock_export) {
        (Some(file), None) if args.unlock_filesystem => Some(Whole::Filesystem(file.clone())),
        (_, Some(export)) => Some(Whole::Export(export.clone())),
        _ => None,
    };
    Ok(Plan {
        asked: Asked {
            wanted,
            vips,
            nfs3: args.nfs != Some(NfsVersion::V4),
            nfs4: args.nfs != Some(NfsVersion::V3),
            all_vips: args.all_vips,
            whole,
        },
        title: format!("{what}{through}"),
        force: args.force,
        dry_run: args.dry_run,
        deadline: args.deadline,
        answer_within: args.answer_within,
    })
}
