//! The release phase, on the node that gives up VIPs: take a snapshot, release, take
//! another, decide.
//!
//! This module only acts: `release::choose` decides what to do next, and
//! [`evidence`](super::evidence) what it proved.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::time::sleep;
use tracing::info;

pub use super::begun::Begun;
use super::credit::{self, Observed};
use super::evidence::{self, Counts, Fate, Item, Other, items};
use super::nfs4::{self, Nfs4Report};
use super::noted;
use super::record::Record;
use super::report::{Gone, ReleaseReport, Step, Verdict, VipReport};
use super::revoked;
use super::watch::{Seen, Watch};
use crate::causes::chain;
use crate::files::Place;
use crate::grace::fence::Fences;
use crate::kernel::connections;
use crate::kernel::netns;
use crate::kernel::path::PathFinder;
use crate::kernel::preflight::Facts;
use crate::notify::book::{Book, BookError};
use crate::notify::state_dir::StateDir;
use crate::observe::counters::{Counters, PerVip};
use crate::observe::describe::Described;
use crate::observe::error::ObserveError;
use crate::observe::host::Host;
use crate::observe::table::LockTable;
use crate::release::choose::{self, Attempt, Decision};
use crate::release::target::{clients_of_others, is_served_elsewhere, targets};
use crate::release::{self, Job, MethodRef, Turn};
use crate::times::milliseconds;

/// Time between two checks of NFSv4 locks that prevent the release of a filesystem.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// What to release, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    pub vips: Vec<IpAddr>,
    pub record: Option<Place<Record>>,
    /// Where clients are recorded before their locks are released.
    pub state: StateDir,
    /// Whether [`run`] must also return the record.
    pub keeps_record: bool,
    /// VIPs whose release an earlier run has started.
    pub begun: Begun,
    pub dry_run: bool,
    /// Exports that may be released as a whole.
    pub filesystems: Vec<PathBuf>,
    /// Whether lockd may be told that clients rebooted.
    pub reboot_notice: bool,
    /// Whether NFSv4 state is ignored.
    pub without_nfs4: bool,
    /// Maximum time for the release of one VIP.
    pub deadline: Duration,
    /// Why lockd has not answered what reached it before the fence. Then nothing can be
    /// confirmed, whatever the lists show: lockd holds one call, and others wait in its
    /// sockets, in none of the kernel's lists. lockd grants them when it continues. Locks
    /// are released anyway, as far as that needs no answer of lockd.
    pub blocked: Option<String>,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Nothing was changed.
    #[error("nothing was released")]
    Before(#[source] anyhow::Error),
    #[error("some locks may be released, nothing is confirmed; run the release again")]
    After(#[source] anyhow::Error),
}

/// Releases the plan's VIPs one after another. The report contains every method that was
/// tried; the record contains what was held before.
pub async fn run(
    plan: &Plan,
    facts: &Facts,
    watch: &mut Watch,
    paths: &mut PathFinder,
    fences: &mut Fences,
) -> Result<(ReleaseReport, Option<Record>), RunError> {
    let began = Instant::now();
    // No other run releases anything between the snapshots.
    let turn = match plan.dry_run {
        true => None,
        false => Some((Turn::take(plan.deadline).await).map_err(|e| RunError::Before(e.into()))?),
    };
    let start = Start::look(plan, facts, watch, paths).map_err(RunError::Before)?;
    let released = release_all(plan, facts, watch, paths, &start, turn.as_ref(), fences).await;
    let (vips, others) = released.map_err(|error| match fences.is_kept() {
        true => RunError::After(error),
        false => RunError::Before(error),
    })?;
    let confirmed = (vips.iter()).all(|vip| vip.verdict == Verdict::Confirmed)
        && others.iter().all(|other| other.fate != Fate::Disturbed);
    if confirmed {
        // Nothing was held, so there was nothing to release.
        fences.keep();
    }
    let report = ReleaseReport {
        schema: ReleaseReport::SCHEMA,
        node: netns::node(),
        kernel: facts.release.clone(),
        dry_run: plan.dry_run,
        confirmed,
        fenced: fences.staying().to_vec(),
        fenced_for_ms: 0,
        vips,
        other_vips: others,
        took_ms: milliseconds(began.elapsed()),
    };
    Ok((report, start.record))
}

/// The state before the release.
struct Start {
    counters: PerVip,
    /// One snapshot per VIP of the plan.
    looks: Vec<Seen>,
    record: Option<Record>,
    /// VIPs whose clients could not be added to the client book, and why.
    unnoted: BTreeMap<IpAddr, BookError>,
}

impl Start {
    /// Takes the snapshots and writes the record if requested.
    fn look(
        plan: &Plan,
        facts: &Facts,
        watch: &mut Watch,
        paths: &mut PathFinder,
    ) -> anyhow::Result<Self> {
        let counters = watch.counters()?;
        let looks = (plan.vips.iter())
            .map(|&vip| watch.look(vip))
            .collect::<Result<Vec<_>, _>>()?;
        let mut start = Start {
            counters,
            looks,
            record: None,
            unnoted: BTreeMap::new(),
        };
        if !plan.dry_run {
            for (&vip, seen) in plan.vips.iter().zip(&start.looks) {
                if let Err(error) = noted::before_release(&plan.state, vip, &seen.ours) {
                    start.unnoted.insert(vip, error);
                }
            }
        }
        if plan.record.is_some() || plan.keeps_record {
            let tables = start.looks.iter().map(|seen| &seen.ours);
            let (node, release) = (netns::node(), facts.release.clone());
            let mut record = Record::of(tables, paths, node, release, &plan.vips);
            record.connections =
                connections::established(|vip| plan.vips.contains(&vip)).unwrap_or_default();
            if !plan.without_nfs4 {
                nfs4::record(&mut record, watch, &plan.vips, paths);
            }
            if let Some(place) = &plan.record {
                let looks = plan.vips.iter().zip(&start.looks);
                let begun = looks.filter(|(vip, seen)| plan.begun.counts(**vip, &seen.ours));
                if let Some(earlier) = place.earlier() {
                    begun.for_each(|(&vip, _)| record.recall(earlier, vip));
                    record.keep_others(earlier);
                }
                if !plan.dry_run {
                    record.put(place)?;
                    info!(path = %place.path().display(), locks = record.locks.len(), "recorded");
                }
            }
            start.record = Some(record);
        }
        Ok(start)
    }
}

async fn release_all(
    plan: &Plan,
    facts: &Facts,
    watch: &mut Watch,
    paths: &mut PathFinder,
    start: &Start,
    turn: Option<&Turn>,
    fences: &mut Fences,
) -> anyhow::Result<(Vec<VipReport>, Vec<Other>)> {
    let mut vips = Vec::new();
    let mut last = None;
    for (&vip, before) in plan.vips.iter().zip(&start.looks) {
        let mut one = OneVip {
            plan,
            facts,
            watch,
            fences,
            vip,
            turn,
            began: Instant::now(),
        };
        let (mut report, seen) = one.release(before, &start.counters, paths).await?;
        if let Some(error) = start.unnoted.get(&vip) {
            let warning = format!(
                "its clients could not be added to the client book: {}",
                chain(error)
            );
            report.warnings.push(warning);
        }
        vips.push(report);
        last = Some(seen);
    }
    let others = match (start.looks.first(), last) {
        (Some(first), Some(last)) if !plan.dry_run => {
            let meanwhile = since(&watch.counters()?, &start.counters);
            let is_target = |host: &Host| watch.is_ours(host) && plan.vips.contains(&host.vip);
            evidence::others(
                &first.snapshot.table,
                &last.snapshot.table,
                &meanwhile,
                is_target,
            )
        }
        _ => Vec::new(),
    };
    Ok((vips, others))
}

/// The lines of what is gone, with the observation that first missed it.
fn gone<T>(
    observed: &[Observed],
    lines: impl Iterator<Item = T>,
    items: impl Iterator<Item = Item>,
) -> Vec<Gone<T>> {
    lines
        .zip(items)
        .filter_map(|(line, item)| {
            let observed = credit::missed(observed, &item)?;
            Some(Gone {
                line,
                method: observed.credit(&item),
                after_ms: milliseconds(observed.at),
            })
        })
        .collect()
}

/// The snapshot after a method, the first of the two that a verdict needs.
struct After {
    /// The counters before the snapshot.
    from: Counters,
    seen: Seen,
}

/// The release of one of the plan's VIPs.
struct OneVip<'a> {
    plan: &'a Plan,
    facts: &'a Facts,
    watch: &'a mut Watch,
    fences: &'a mut Fences,
    vip: IpAddr,
    /// None in a dry run.
    turn: Option<&'a Turn>,
    began: Instant,
}

impl OneVip<'_> {
    /// Returns the report and the last snapshot. `start` are the counters before `before`
    /// was taken.
    async fn release(
        &mut self,
        before: &Seen,
        start: &PerVip,
        paths: &mut PathFinder,
    ) -> anyhow::Result<(VipReport, Seen)> {
        let mut blockers = Vec::new();
        let mut observed = Vec::new();
        let (steps, after) = self.steps(before, &mut observed, &mut blockers).await?;

        let After { from, seen: first } = match after {
            Some(after) => after,
            None => After {
                from: self.counted()?,
                seen: self.watch.look(self.vip)?,
            },
        };
        let last = self.watch.look(self.vip)?;
        let until = self.counted()?;
        observed.push(Observed {
            method: None,
            meanwhile: until - from,
            at: self.began.elapsed(),
            left: items(&last.ours),
        });
        let nfs4_held = match self.plan.without_nfs4 {
            true => Nfs4Report::LeftOut,
            false => Nfs4Report::new(&self.watch.states(self.vip), self.vip, paths),
        };
        let verdict = if self.plan.dry_run {
            Verdict::Planned
        } else {
            blockers.extend(nfs4_held.blocker());
            let looks = [first.as_look(), last.as_look()];
            blockers.extend(evidence::blockers(looks, &(until - from)));
            blockers.extend(self.plan.blocked.iter().map(|blocked| {
                format!("{blocked}: requests that reached lockd earlier may still be granted")
            }));
            match blockers.is_empty() {
                true => Verdict::Confirmed,
                false => Verdict::NotConfirmed,
            }
        };

        let table = &before.ours;
        let described = Described::new(table, paths);
        let remaining = Described::new(&last.ours, paths);
        let counters = until - start.get(&self.vip).copied().unwrap_or_default();
        let report = VipReport {
            vip: self.vip,
            known: self.is_known(before),
            verdict,
            blockers,
            warnings: self.warnings(&counters),
            before: before.counts(),
            steps,
            released: gone(&observed, described.locks(), evidence::locks(table)),
            waiters_released: gone(&observed, described.waiters(), evidence::waiters(table)),
            shares_released: gone(&observed, described.shares(), evidence::shares(table)),
            remaining: remaining.locks().collect(),
            remaining_waiters: remaining.waiters().collect(),
            remaining_shares: remaining.shares().collect(),
            nfs4: nfs4_held,
            counters,
        };
        Ok((report, last))
    }

    /// Tries one method after another while the kernel's lists show locks. Returns the
    /// snapshot after the last one.
    async fn steps(
        &mut self,
        before: &Seen,
        observed: &mut Vec<Observed>,
        blockers: &mut Vec<String>,
    ) -> anyhow::Result<(Vec<Step>, Option<After>)> {
        let mut choice = self.choice(&before.snapshot.table);
        let mut steps = Vec::new();
        let mut attempts = Vec::new();
        let mut after: Option<After> = None;
        loop {
            let table = after
                .as_ref()
                .map_or(&before.ours, |after| &after.seen.ours);
            let counts = Counts::of(table);
            // NFSv4 clients lock and unlock meanwhile.
            choice.filesystems = revoked::may_release(self.watch, &self.plan.filesystems);
            let has_time = self.turn.is_some() && self.began.elapsed() < self.plan.deadline;
            let (method, reason) = match choose::next(&choice, counts.total(), &attempts) {
                Decision::Done => return Ok((steps, after)),
                Decision::GiveUp { .. } if choice.may_change() && has_time => {
                    sleep(POLL_INTERVAL).await;
                    continue;
                }
                Decision::GiveUp { reason } => {
                    blockers.push(reason);
                    return Ok((steps, after));
                }
                Decision::Go { method, reason } => (method, reason),
            };
            let mut step = Step {
                method,
                reason,
                action: None,
                error: None,
                hosts: Vec::new(),
                before: counts,
                after: counts,
                took_ms: 0.0,
            };
            let Some(turn) = self.turn else {
                steps.push(step);
                return Ok((steps, after));
            };
            if self.began.elapsed() >= self.plan.deadline {
                let seconds = self.plan.deadline.as_secs_f64();
                blockers.push(format!(
                    "the release did not finish within its deadline of {seconds} s"
                ));
                return Ok((steps, after));
            }

            let counted = self.counted()?;
            let went = Instant::now();
            self.fences.keep();
            match self.go(method, table, &before.snapshot.table, turn).await {
                Ok(report) => {
                    step.action = Some(report.action);
                    step.hosts = report.hosts;
                }
                Err(error) => step.error = Some(chain(&error)),
            }
            let from = self.counted()?;
            let seen = self.watch.look(self.vip)?;
            step.after = seen.counts();
            step.took_ms = milliseconds(went.elapsed());
            observed.push(Observed {
                method: Some(method),
                meanwhile: self.counted()? - counted,
                at: self.began.elapsed(),
                left: items(&seen.ours),
            });
            attempts.push(Attempt {
                method,
                before: counts.total(),
                after: step.after.total(),
                error: step.error.clone(),
            });
            steps.push(step);
            after = Some(After { from, seen });
        }
    }

    /// The facts for the choice of a method.
    fn choice(&self, table: &LockTable) -> choose::Facts {
        let elsewhere = is_served_elsewhere(table, self.vip, self.watch.netns());
        choose::Facts {
            reboot_allowed: self.plan.reboot_notice,
            lockd_blocked: self.plan.blocked.clone(),
            ..choose::Facts::of_node(self.facts, self.vip, elsewhere)
        }
    }

    /// Applies one method. `everything` is what lockd held at the start.
    async fn go(
        &self,
        method: MethodRef,
        table: &LockTable,
        everything: &LockTable,
        turn: &Turn,
    ) -> Result<release::Report, release::Error> {
        let netns = self.watch.netns();
        let job = Job {
            vip: self.vip,
            netns,
            targets: &targets(table, self.vip, netns),
            elsewhere: &clients_of_others(everything, self.vip, netns),
            filesystems: &self.plan.filesystems,
            turn,
            deadline: self.plan.deadline.saturating_sub(self.began.elapsed()),
        };
        method.release(&job).await
    }

    fn counted(&self) -> Result<Counters, ObserveError> {
        let all = self.watch.counters()?;
        Ok(all.get(&self.vip).copied().unwrap_or_default())
    }

    /// Whether the address is, or was, a VIP of this node, as far as nlmfo can tell.
    fn is_known(&self, before: &Seen) -> bool {
        let vip = self.vip;
        let hosts = &before.snapshot.table.hosts;
        hosts.iter().any(|host| host.key.vip == vip)
            || netns::has_address(vip).unwrap_or(true)
            || Book::read(&self.plan.state, vip).is_ok_and(|read| read.owner.is_some())
    }

    fn warnings(&self, counters: &Counters) -> Vec<String> {
        let mut warnings = Vec::new();
        if counters.grants() > 0 && self.plan.record.is_some() {
            warnings.push(format!(
                "{} locks were granted through the VIP after the record was started; they may be \
             missing in it",
                counters.grants()
            ));
        }
        warnings
    }
}

/// The difference of two readings of the counters.
pub(super) fn since(now: &PerVip, then: &PerVip) -> PerVip {
    (now.iter())
        .map(|(vip, counters)| (*vip, *counters - then.get(vip).copied().unwrap_or_default()))
        .collect()
}
