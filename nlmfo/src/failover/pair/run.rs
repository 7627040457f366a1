//! `nlmfo failover --to HOST`: moves VIPs to another node, run on the one that gives them
//! up.

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::anyhow;

use super::report::{PairReport, Step};
use super::{Action, HandOverError, MARGIN, REMOTE, Remedy, Standing, There, hand_over, remedy};
use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::failover::exclusive::Working;
use crate::failover::options::{Notify, Options, OtherNode};
use crate::failover::record::Record;
use crate::failover::run::{default_record, release, takeover};
use crate::files::{self, LIMIT};
use crate::grace::fence;
use crate::kernel::netns;
use crate::times::milliseconds;

/// Runs it. The report always contains what has been done so far.
///
/// # Errors
/// If nothing was changed on either node.
pub async fn run(
    options: &Options,
    node: &OtherNode,
    working: Option<Working>,
    report: &mut Option<PairReport>,
) -> Result<Exit, Failure> {
    let began = Instant::now();
    let is_ours = options.release.record.is_none();
    let record = match &options.release.record {
        Some(record) => record.clone(),
        None => default_record::path(options)?,
    };
    let before = before_takeover(options, node);
    let mut options = options.clone();
    options.release.record = Some(record.clone());
    // While the VIPs may still be here, no lock is granted that is not in the record.
    options.release.fence = options.release.fence.map(|fence| fence.max(before));
    // Before anything is changed on either node.
    release::record_place(&options.release)?;
    let released = !release::begun(&options.vips)?.fenced.is_empty();
    let mut pair = Pair {
        options: &options,
        node,
        there: &there(&options, node, before),
        working,
        released,
        moving: false,
        report: report.insert(PairReport {
            schema: PairReport::SCHEMA,
            from: netns::node(),
            to: node.rsh.host.clone(),
            vips: options.vips.clone(),
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
        default_record::forget(&record);
    }
    Ok(exit)
}

/// What may remain if a signal ends the command.
pub fn if_interrupted(options: &Options, node: &OtherNode) -> String {
    let grace = before_takeover(options, node) + options.takeover.grace + MARGIN;
    format!(
        "locks may be released here, and grace may continue on {} for at most {} s; run the \
         command again",
        node.rsh.host,
        grace.as_secs()
    )
}

/// Maximum time until the takeover starts there.
fn before_takeover(options: &Options, node: &OtherNode) -> Duration {
    // Includes the wait for other runs.
    let times = u32::try_from(options.vips.len())
        .unwrap_or(u32::MAX)
        .saturating_add(1);
    let release = options.release.deadline.saturating_mul(times);
    let services = options.takeover.wait_services.unwrap_or_default();
    release + node.hand_over_deadline + services + REMOTE
}

/// What the other node is to do.
fn there(options: &Options, node: &OtherNode, before: Duration) -> There {
    let takeover = &options.takeover;
    let mut further: Vec<OsString> = Vec::new();
    let mut give = |option: &str, value: &Path| further.extend([option.into(), value.into()]);
    give("--state-dir", options.state.path());
    if !takeover.filesystems.is_empty() {
        give("--scope", Path::new("filesystem"));
    }
    for folder in &takeover.filesystems {
        give("--filesystem", folder);
    }
    if let Notify::Program(program) = &takeover.notify {
        give("--notify", program);
    }
    if let Some(config) = &takeover.config {
        give("--config", config);
    }
    if takeover.notify == Notify::Nobody {
        further.push("--no-notify".into());
    }
    There {
        rsh: node.rsh.clone(),
        vips: options.vips.clone(),
        grace: takeover.grace,
        before,
        wait_address: takeover.wait_address.unwrap_or(node.hand_over_deadline),
        wait_services: takeover.wait_services,
        takeover: further,
    }
}

struct Pair<'a> {
    options: &'a Options,
    node: &'a OtherNode,
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
            return self.recover(Action::Check, checked).await;
        }
        let (step, armed) = self.there.arm().await;
        self.report.steps.push(step);
        if armed != Exit::Done {
            return self.recover(Action::Arm, armed).await;
        }
        let began = Instant::now();
        match release::run(self.options, self.working.as_ref()).await {
            Ok(done) => {
                self.released = true;
                let confirmed = done.report.is_good();
                let error = (!confirmed).then(|| "not confirmed, see below".to_owned());
                self.step(Action::Release, began, error);
                self.report.release = Some(done.report);
                if !confirmed {
                    return self.recover(Action::Release, Exit::NotConfirmed).await;
                }
            }
            Err(Failure { exit, error }) => {
                self.step(Action::Release, began, Some(format!("{error:#}")));
                self.released |= exit == Exit::NotConfirmed;
                return self.recover(Action::Release, exit).await;
            }
        }
        if let Some(program) = &self.node.hand_over {
            let began = Instant::now();
            let deadline = self.node.hand_over_deadline;
            let done = hand_over(program, &self.report.to, &self.options.vips, deadline).await;
            self.moving = matches!(done, Err(HandOverError::Deadline { .. }));
            let error = done.err().map(|error| chain(&error));
            let failed = error.is_some();
            self.step(Action::HandOver, began, error);
            if failed {
                return self.recover(Action::HandOver, Exit::NotConfirmed).await;
            }
        }
        self.working = None;
        let began = Instant::now();
        let text = match files::read(record, LIMIT) {
            Ok(text) => text,
            Err(error) => {
                let error = format!("{:#}", anyhow!(error));
                self.step(Action::TakeOver, began, Some(error));
                return self.recover(Action::TakeOver, Exit::NotConfirmed).await;
            }
        };
        let (step, taken, exit) = self.there.take_over(&text).await;
        let failed = step.error.is_some();
        self.report.steps.push(step);
        self.report.takeover = taken;
        match failed {
            true => self.recover(Action::TakeOver, exit).await,
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
    async fn recover(&mut self, failed: Action, exit: Exit) -> Exit {
        let to = self.report.to.clone();
        let is_here = |vip: &IpAddr| netns::has_address(*vip).unwrap_or(false);
        let standing = Standing {
            released: self.released,
            all_here: self.options.vips.iter().all(is_here),
            moving: self.moving,
        };
        let situation = match remedy(failed, standing) {
            Remedy::Nothing => format!("nothing was changed here or on {to}"),
            Remedy::EndThere => {
                let fence = match fence::lower(&self.options.vips).await {
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
                let there = match self.end_there().await {
                    true => String::new(),
                    false => {
                        format!("; if grace was started on {to}, it remains until its time is over")
                    }
                };
                let clients = match self.take_back().await {
                    true => "have reclaimed their locks here",
                    false => "may have lost locks; see above",
                };
                format!("the VIPs are still on this node, and their clients {clients}{there}")
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
        let path = self.options.release.record.as_deref();
        let expect = path.and_then(|path| Record::read(path).ok());
        let mut options = self.options.clone();
        options.takeover.wait_address = Some(Duration::ZERO);
        match takeover::run(&options, expect).await {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::options::Task;
    use crate::failover::pair::rsh::Rsh;
    use crate::notify::state_dir::StateDir;

    fn options() -> (Options, OtherNode) {
        let node = OtherNode {
            rsh: Rsh::new("ssh".as_ref(), "b", "nlmfo".as_ref()).unwrap(),
            hand_over: None,
            hand_over_deadline: Duration::from_mins(1),
        };
        let vips = ["10.77.0.1", "fd77::1"].map(|vip| vip.parse().unwrap());
        let mut options = Options::dry_run(vips.into(), StateDir::new("/state"));
        options.dry_run = false;
        options.task = Task::Move(node.clone());
        (options, node)
    }

    #[test]
    fn the_other_node_gets_what_its_takeover_needs() {
        let (mut options, node) = options();
        let words = |options: &Options| there(options, &node, Duration::ZERO).takeover;
        assert_eq!(words(&options), ["--state-dir", "/state"]);
        options.takeover.filesystems = vec!["/srv".into()];
        options.takeover.notify = Notify::Nobody;
        options.takeover.config = Some("/names".into());
        let all =
            "--state-dir /state --scope filesystem --filesystem /srv --config /names --no-notify";
        assert_eq!(words(&options), all.split(' ').collect::<Vec<_>>());
        options.takeover.notify = Notify::Program("/tell".into());
        let words = words(&options).join("".as_ref());
        assert!(
            words.to_str().unwrap().contains("--notify/tell"),
            "{words:?}"
        );
        let there = there(&options, &node, Duration::ZERO);
        assert_eq!(there.wait_address, node.hand_over_deadline);
    }

    #[test]
    fn grace_there_outlasts_all_that_comes_before_the_takeover() {
        let (mut options, node) = options();
        // The releases of two VIPs and one wait, the hand-over, a command there.
        let before = Duration::from_secs(3 * 30 + 60) + REMOTE;
        assert_eq!(before_takeover(&options, &node), before);
        options.takeover.wait_services = Some(Duration::from_secs(7));
        let services = Duration::from_secs(7);
        assert_eq!(before_takeover(&options, &node), before + services);
        let grace = options.takeover.grace;
        let most = (before + services + grace + MARGIN).as_secs();
        let text = if_interrupted(&options, &node);
        assert!(
            text.contains(&format!("on b for at most {most} s")),
            "{text}"
        );
    }
}
