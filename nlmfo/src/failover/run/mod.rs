//! A run of `nlmfo failover`: both phases or one, on this node or with another one. See
//! [`own`](super::own) for a server of its own.

mod begin;
pub mod default_record;
pub mod dry;
pub mod release;
pub mod reports;
pub mod takeover;

use std::net::IpAddr;

use anyhow::anyhow;

use self::begin::{Begin, begin, end_windows};
use self::reports::Reports;
use super::exclusive::Working;
use super::interrupted::or_interrupt;
use super::options::{Options, Task};
use super::pair;
use super::record::Record;
use crate::exit::{Exit, Failure};
use crate::grace::standing;
use crate::{interrupt, output};

const RELEASING: &str = "some locks may be released; run the command again";
const TAKING: &str = "clients may not have all their locks yet; run the takeover again, or end grace with \
                      `nlmfo grace --end`";

/// Runs the failover. The results are in `reports`, also after an error.
///
/// # Errors
/// With what remains for the VIPs in the kernel.
pub async fn run(options: &Options, reports: &mut Reports) -> Result<Exit, Failure> {
    let ended = work(options, reports).await;
    ended.map_err(|failure| with_standing(failure, &options.vips))
}

/// Adds the remaining fences and windows of the VIPs to the failure.
fn with_standing(failure: Failure, vips: &[IpAddr]) -> Failure {
    match standing::of(vips) {
        // After a signal the error contains them already.
        _ if interrupt::came().is_some() => failure,
        Ok(standing) if standing.is_empty() => failure,
        _ => {
            let standing = standing::words(vips);
            Failure::new(failure.exit, anyhow!("{:#}; {standing}", failure.error))
        }
    }
}

async fn work(options: &Options, reports: &mut Reports) -> Result<Exit, Failure> {
    let vips = &options.vips;
    // Held until the work is done, but not while the report is printed.
    let Begin {
        working,
        has_opened,
    } = or_interrupt(begin(options), vips, "no lock was released").await?;
    match &options.task {
        Task::Move(node) => {
            let standing = pair::run::if_interrupted(options, node);
            let moved = pair::run::run(options, node, working, &mut reports.pair);
            or_interrupt(moved, vips, &standing).await
        }
        Task::Release => release_phase(options, reports, working.as_ref())
            .await
            .map(|(exit, _)| exit),
        Task::Takeover => {
            let taken = match expected(options) {
                Ok(expect) => takeover_phase(options, reports, expect).await,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = &taken
                && has_opened
                && failure.exit != Exit::NotConfirmed
            {
                // If they remain, the failure says so.
                let _ = end_windows(vips).await;
            }
            taken
        }
        Task::Both => both(options, reports, working.as_ref()).await,
    }
}

/// Returns the exit status and the record.
async fn release_phase(
    options: &Options,
    reports: &mut Reports,
    working: Option<&Working>,
) -> Result<(Exit, Option<Record>), Failure> {
    let released = release::run(options, working);
    let done = or_interrupt(released, &options.vips, RELEASING).await?;
    let exit = match done.report.is_good() {
        true => Exit::Done,
        false => Exit::NotConfirmed,
    };
    reports.release = Some(done.report);
    Ok((exit, done.record))
}

async fn takeover_phase(
    options: &Options,
    reports: &mut Reports,
    expect: Option<Record>,
) -> Result<Exit, Failure> {
    if options.dry_run {
        reports.plan = Some(dry::takeover(options, expect).await?);
        return Ok(Exit::Done);
    }
    let taken = takeover::run(options, expect);
    let report = or_interrupt(taken, &options.vips, TAKING).await?;
    let exit = report.exit();
    reports.takeover = Some(report);
    Ok(exit)
}

/// Release and takeover on one node: the VIP's clients lose and reclaim their locks.
async fn both(
    options: &Options,
    reports: &mut Reports,
    working: Option<&Working>,
) -> Result<Exit, Failure> {
    let expect = expected(options)?;
    if !options.dry_run {
        takeover::ensure_ready(options).await?;
    }
    // Both phases are one move: a repeated run must know what the first phase released.
    let own = default_record::of_both(options);
    let mut options = options.clone();
    options.release.record = options.release.record.or_else(|| own.clone());
    let (released, record) = release_phase(&options, reports, working).await?;
    if released != Exit::Done {
        return Ok(released);
    }
    if !options.dry_run {
        // In case this process is killed.
        reports.keep(None, None);
        output::progress(format_args!(
            "{}: released; taking over",
            listed(&options.vips)
        ));
    }
    let exit = takeover_phase(&options, reports, expect.or(record)).await?;
    if let Some(record) = own
        && matches!(exit, Exit::Done | Exit::Incomplete)
    {
        default_record::forget(&record);
    }
    Ok(exit)
}

/// The record that `--expect` names. An error if it does not cover all the VIPs: the grace of
/// the others would end at once.
fn expected(options: &Options) -> Result<Option<Record>, Failure> {
    let Some(path) = options.takeover.expect.as_deref() else {
        return Ok(None);
    };
    let record = Record::read(path).map_err(anyhow::Error::from)?;
    match not_covered(&record, &options.vips) {
        None => Ok(Some(record)),
        Some(vip) => {
            let (path, vips) = (path.display(), listed(&record.vips));
            Err(anyhow!("the release record {path} does not cover {vip}, only {vips}").into())
        }
    }
}

/// The first of the VIPs that the record does not cover.
fn not_covered(record: &Record, vips: &[IpAddr]) -> Option<IpAddr> {
    let mut vips = vips.iter();
    vips.find(|vip| !record.vips.contains(vip)).copied()
}

fn listed(vips: &[IpAddr]) -> String {
    let vips: Vec<String> = vips.iter().map(IpAddr::to_string).collect();
    vips.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_of_other_vips_is_no_record_of_this_one() {
        let vips: [IpAddr; 3] =
            ["10.77.0.1", "10.77.0.2", "fd77::1"].map(|vip| vip.parse().unwrap());
        let record = Record::of_clients(vips[..2].to_vec(), Vec::new());
        assert_eq!(not_covered(&record, &vips[..2]), None);
        assert_eq!(not_covered(&record, &vips[1..]), Some(vips[2]));
        assert_eq!(listed(&vips[1..]), "10.77.0.2, fd77::1");
    }
}
