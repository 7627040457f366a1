//! `nlmfo failover --to HOST`: moves VIPs to another node, run on the one that gives them
//! up.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::net::IpAddr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use super::{is_good, release, takeover};
use crate::causes::chain;
use crate::cli::FailoverArgs;
use crate::exit::{Exit, Failure};
use crate::failover::exclusive::Working;
use crate::failover::pair::report::{PairReport, Step};
use crate::failover::pair::rsh::Rsh;
use crate::failover::pair::{
    Action, HandOverError, MARGIN, REMOTE, Remedy, Standing, There, hand_over, remedy,
};
use crate::failover::record::Record;
use crate::files::{self, LIMIT};
use crate::foreign::Shown;
use crate::grace::fence;
use crate::kernel::netns;
use crate::notify::state_dir::{self, Readers};
use crate::output;
use crate::times::milliseconds;

/// Runs it. The report always contains what has been done so far.
pub async fn run(
    args: &FailoverArgs,
    vips: &[IpAddr],
    host: &str,
    working: Option<Working>,
    report: &mut Option<PairReport>,
) -> Result<Exit, Failure> {
    let began = Instant::now();
    let mut args = args.clone();
    let is_ours = args.release.record.is_none();
    let record = record_path(&mut args)?;
    // Before anything is changed on either node.
    super::record_place(&args.release)?;
    let before = before_takeover(&args, vips);
    // While the VIPs may still be here, no lock is granted that is not in the record.
    args.release.fence = args.release.fence.max(before);
    let there = there(&args, vips, host, before)?;
    let released = !super::begun(vips)?.fenced.is_empty();
    let mut pair = Pair {
        args: &args,
        vips,
        there: &there,
        working,
        released,
        moving: false,
        report: report.insert(PairReport {
            schema: PairReport::SCHEMA,
            from: netns::node(),
            to: host.to_owned(),
            vips: vips.to_vec(),
            steps: Vec::new(),
            release: None,
            takeover: None,
            reclaimed_here: None,
            situation: None,
            took_ms: 0.0,
        }),
    };
    let exit = pair.go(&record).await;
    pair.report.took_ms = milliseconds(began.elapsed());
    if is_ours && matches!(exit, Exit::Done | Exit::Incomplete) {
        forget_record(&record);
    }
    Ok(exit)
}

/// What may remain if a signal ends the command.
pub fn if_interrupted(args: &FailoverArgs, vips: &[IpAddr], host: &str) -> String {
    let grace = before_takeover(args, vips) + args.takeover.grace + MARGIN;
    format!(
        "locks may be released here, and grace may continue on {host} for at most {} s; run the \
         command again",
        grace.as_secs()
    )
}

/// Maximum time until the takeover starts there.
fn before_takeover(args: &FailoverArgs, vips: &[IpAddr]) -> Duration {
    // Includes the wait for other runs.
    let times = u32::try_from(vips.len())
        .unwrap_or(u32::MAX)
        .saturating_add(1);
    let release = args.release.deadline.saturating_mul(times);
    let services = args.takeover.wait_services.unwrap_or_default();
    release + args.pair.hand_over_deadline + services + REMOTE
}

fn there(
    args: &FailoverArgs,
    vips: &[IpAddr],
    host: &str,
    before: Duration,
) -> Result<There, Failure> {
    let takeover = &args.takeover;
    let mut further: Vec<OsString> = Vec::new();
    let mut give = |option: &str, value: &Path| further.extend([option.into(), value.into()]);
    give("--state-dir", &args.state.state_dir);
    if !takeover.filesystem.is_empty() {
        give("--scope", Path::new("filesystem"));
    }
    for folder in &takeover.filesystem {
        give("--filesystem", folder);
    }
    if let Some(program) = &takeover.notify {
        give("--notify", program);
    }
    if let Some(config) = &takeover.config {
        give("--config", config);
    }
    if takeover.no_notify {
        further.push("--no-notify".into());
    }
    Ok(There {
        rsh: rsh(&args.pair.rsh, host, &args.pair.remote_nlmfo)?,
        vips: vips.to_vec(),
        grace: takeover.grace,
        before,
        wait_address: takeover
            .wait_address
            .unwrap_or(args.pair.hand_over_deadline),
        wait_services: takeover.wait_services,
        takeover: further,
    })
}

/// How to run nlmfo on HOST.
///
/// # Errors
/// If COMMAND of `--rsh` cannot be split into words.
pub fn rsh(command: &OsStr, host: &str, nlmfo: &OsStr) -> Result<Rsh, Failure> {
    let Some(program) = words(command) else {
        let error = anyhow!(
            "--rsh {} is not a command: a quote is not closed",
            command.shown()
        );
        return Err(Failure::new(Exit::Usage, error));
    };
    Ok(Rsh {
        program,
        host: host.to_owned(),
        nlmfo: nlmfo.to_owned(),
    })
}

/// Splits a command into words as a shell does; none if it is empty or a quote is open.
pub(super) fn words(command: &OsStr) -> Option<Vec<OsString>> {
    let words = shlex::bytes::split(command.as_bytes())?;
    (!words.is_empty()).then(|| words.into_iter().map(OsString::from_vec).collect())
}

/// Where the release writes its record: on disk, so that an interrupted failover can be
/// repeated.
fn record_path(args: &mut FailoverArgs) -> Result<PathBuf, Failure> {
    if let Some(path) = &args.release.record {
        return Ok(path.clone());
    }
    let path = default_record(args)?;
    args.release.record = Some(path.clone());
    Ok(path)
}

/// The default record in the state directory, which is created if it is missing.
pub fn default_record(args: &FailoverArgs) -> Result<PathBuf, Failure> {
    let folder = args.state.state_dir.clone();
    state_dir::create(&folder, Readers::Statd)
        .with_context(|| format!("cannot create the state directory {}", folder.display()))?;
    let mut vips = args.vip.clone();
    vips.sort_unstable();
    let names: Vec<String> = vips.iter().map(IpAddr::to_string).collect();
    Ok(folder.join(format!("record-{}.json", names.join("-"))))
}

/// Removes our own record after the move.
pub fn forget_record(record: &Path) {
    if let Err(error) = fs::remove_file(record) {
        let path = record.shown();
        output::note(format_args!(
            "could not remove the release record {path}: {error}"
        ));
    }
}

struct Pair<'a> {
    args: &'a FailoverArgs,
    vips: &'a [IpAddr],
    there: &'a There,
    /// Held while this node is changed, but not while the other node is: it may be moving VIPs
    /// to this node.
    working: Option<Working>,
    /// Locks may have been released, by this run or an interrupted earlier one.
    released: bool,
    /// The hand-over program may still be running.
    moving: bool,
    report: &'a mut PairReport,
}

impl Pair<'_> {
    async fn go(&mut self, record: &Path) -> Exit {
        let (step, checked) = self.there.check().await;
        self.report.steps.push(step);
        if checked != Exit::Done {
            return self.mend(Action::Check, checked).await;
        }
        let (step, armed) = self.there.arm().await;
        self.report.steps.push(step);
        if armed != Exit::Done {
            return self.mend(Action::Arm, armed).await;
        }
        let began = Instant::now();
        match release(self.args, self.vips, self.working.as_ref()).await {
            Ok(done) => {
                self.released = true;
                let confirmed = is_good(&done.report);
                let error = (!confirmed).then(|| "not confirmed, see below".to_owned());
                self.step(Action::Release, began, error);
                self.report.release = Some(done.report);
                if !confirmed {
                    return self.mend(Action::Release, Exit::NotConfirmed).await;
                }
            }
            Err(Failure { exit, error }) => {
                self.step(Action::Release, began, Some(format!("{error:#}")));
                self.released |= exit == Exit::NotConfirmed;
                return self.mend(Action::Release, exit).await;
            }
        }
        if let Some(program) = &self.args.pair.hand_over {
            let began = Instant::now();
            let deadline = self.args.pair.hand_over_deadline;
            let done = hand_over(program, &self.report.to, self.vips, deadline).await;
            self.moving = matches!(done, Err(HandOverError::Deadline { .. }));
            let error = done.err().map(|error| chain(&error));
            let failed = error.is_some();
            self.step(Action::HandOver, began, error);
            if failed {
                return self.mend(Action::HandOver, Exit::NotConfirmed).await;
            }
        }
        self.working = None;
        let began = Instant::now();
        let text = match files::read(record, LIMIT) {
            Ok(text) => text,
            Err(error) => {
                let error = format!("{:#}", anyhow!(error));
                self.step(Action::TakeOver, began, Some(error));
                return self.mend(Action::TakeOver, Exit::NotConfirmed).await;
            }
        };
        let (step, taken, exit) = self.there.take_over(&text).await;
        let failed = step.error.is_some();
        self.report.steps.push(step);
        self.report.takeover = taken;
        match failed {
            true => self.mend(Action::TakeOver, exit).await,
            false => exit,
        }
    }

    fn step(&mut self, action: Action, began: Instant, error: Option<String>) {
        self.report.steps.push(Step {
            action,
            node: self.report.from.clone(),
            error,
            took_ms: milliseconds(began.elapsed()),
        });
    }

    /// After a failed step: restores a safe state on both nodes and reports it. The failover has
    /// failed in any case.
    async fn mend(&mut self, failed: Action, exit: Exit) -> Exit {
        let to = self.report.to.clone();
        let is_here = |vip: &IpAddr| netns::has_address(*vip).unwrap_or(false);
        let standing = Standing {
            released: self.released,
            all_here: self.vips.iter().all(is_here),
            moving: self.moving,
        };
        let situation = match remedy(failed, standing) {
            Remedy::Nothing => format!("nothing was changed here or on {to}"),
            Remedy::EndThere => {
                let fence = match fence::lower(self.vips).await {
                    Ok(()) => String::new(),
                    Err(error) => format!(
                        "; the fence here remains until its time is over: {}",
                        chain(&error)
                    ),
                };
                match self.end_there().await {
                    true => format!("nothing was released, and grace on {to} was ended{fence}"),
                    false => format!(
                        "nothing was released; if grace was started on {to}, it remains until its time is \
                         over{fence}"
                    ),
                }
            }
            Remedy::TakeBack => {
                self.end_there().await;
                match self.take_back().await {
                    true => "the VIPs are still on this node, and their clients have reclaimed their locks here"
                        .to_owned(),
                    false => "the VIPs are still on this node, and their clients may have lost locks; see above"
                        .to_owned(),
                }
            }
            Remedy::LeaveThere => format!(
                "locks are released here, and grace on {to} remains until its time is over; bring the \
                 VIPs up there (not here), then run this command again, or `nlmfo failover --phase \
                 takeover` on {to}"
            ),
        };
        self.report.situation = Some(situation);
        exit
    }

    async fn end_there(&mut self) -> bool {
        let (step, exit) = self.there.end().await;
        self.report.steps.push(step);
        exit == Exit::Done
    }

    /// Lets the VIPs' clients reclaim here what was released here.
    async fn take_back(&mut self) -> bool {
        let began = Instant::now();
        let path = self.args.release.record.as_deref();
        let expect = path.and_then(|path| Record::read(path).ok());
        let mut args = self.args.clone();
        args.takeover.wait_address = Some(Duration::ZERO);
        match takeover(&args, self.vips, expect).await {
            Ok(report) => {
                let exit = report.exit();
                let error = (exit != Exit::Done).then(|| "not complete, see below".to_owned());
                self.step(Action::TakeBack, began, error);
                self.report.reclaimed_here = Some(report);
                exit == Exit::Done
            }
            Err(Failure { error, .. }) => {
                self.step(Action::TakeBack, began, Some(format!("{error:#}")));
                false
            }
        }
    }
}
