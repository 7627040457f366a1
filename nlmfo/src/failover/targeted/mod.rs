//! A targeted release: releases the state of one client, one file or one lock, and no other. Takes a
//! snapshot, refuses or releases, takes two more, compares.
//!
//! This module only acts: [`select`] decides what is released, [`alive`] whether its clients are alive,
//! and [`proof`] what the snapshots prove.
//!
//! | what | NFSv3 | NFSv4 |
//! |---|---|---|
//! | all of a client | FREE_ALL for each of its hosts | `expire` in `clients/N/ctl` |
//! | what is on a file | UNLOCK, CANCEL and UNSHARE in the clients' names | only all on its filesystem or export, from 6.9 and 7.2 on |
//! | one lock | the same, for one range of one owner | not at all |

mod act;
pub mod alive;
pub mod id;
mod lines;
pub mod on;
pub mod proof;
pub mod report;
pub mod select;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use futures_util::{StreamExt, stream};

use self::act::Act;
use self::alive::{Alive, Sign};
use self::proof::{Nfs4, Nlm, Ours};
use self::report::{Others, TargetedReport};
use self::select::{Asked, Refusal, Selection, Wanted, Whole, select};
use super::evidence::{Items, items};
use super::exclusive::Working;
use super::revoked;
use super::watch::Watch;
use crate::causes::chain;
use crate::kernel::netlink::{Command, NfsdNetlink};
use crate::kernel::path::PathFinder;
use crate::kernel::preflight::Facts;
use crate::observe::counters::PerVip;
use crate::observe::host::{Host, NlmVersion};
use crate::observe::snapshot::Snapshot;
use crate::observe::states::take::{StateSnapshot, StatesError};
use crate::observe::states::{Counts4, StateTable};
use crate::observe::table::LockTable;
use crate::release::{HostReport, Turn};
use crate::rpc::alive::answering;

/// What to release, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    pub asked: Asked,
    /// In words.
    pub title: String,
    /// Release the state even of a client that is alive.
    pub force: bool,
    pub dry_run: bool,
    /// For each part: waiting for other runs, all calls to lockd.
    pub deadline: Duration,
    /// How long a client may take to show that it is alive.
    pub answer_within: Duration,
}

/// Why there is no report. Nothing was changed, but for [`RunError::After`].
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error("nothing was released")]
    Refused(#[from] Refusal),
    #[error("nothing was released: {}; --force releases it anyway", signs(.0))]
    Alive(Vec<Alive>),
    #[error("nothing was released: {0}")]
    Unsupported(String),
    #[error("nothing was released")]
    Before(#[source] anyhow::Error),
    #[error("some state may be released, nothing is confirmed; run the command again")]
    After(#[source] anyhow::Error),
}

fn signs(alive: &[Alive]) -> String {
    let signs: Vec<String> = alive.iter().map(Alive::to_string).collect();
    signs.join("; ")
}

/// Number of clients asked at the same time whether they are alive.
const ASKED_AT_A_TIME: usize = 32;

/// Everything, as it was seen once.
struct Looked {
    snapshot: Snapshot,
    /// The NFSv3 part that belongs to this namespace.
    ours: LockTable,
    /// None if NFSv4 is ignored.
    states: Option<Result<StateSnapshot, StatesError>>,
}

impl Looked {
    fn at(watch: &mut Watch, asked: &Asked, only: Option<IpAddr>) -> anyhow::Result<Looked> {
        let snapshot = watch.snapshot(only)?;
        let ours = snapshot.table.part(|host| watch.is_ours(host));
        // The client's directory shows that it is gone, even while others change their state.
        let max_wait = match asked.whole {
            Some(_) => Duration::from_secs(5),
            None => Duration::from_secs(1),
        };
        let states = asked.nfs4.then(|| watch.all_states(max_wait));
        Ok(Looked {
            snapshot,
            ours,
            states,
        })
    }

    fn table4(&self) -> Option<&StateTable> {
        Some(&self.states.as_ref()?.as_ref().ok()?.table)
    }

    fn select(&self, plan: &Plan) -> Result<Selection, Refusal> {
        select(&plan.asked, &self.ours, self.table4())
    }
}

/// Carries out the plan. The report includes what was tried and did not help.
pub async fn run(
    plan: &Plan,
    facts: &Facts,
    watch: &mut Watch,
    paths: &mut PathFinder,
) -> Result<TargetedReport, RunError> {
    let began = Instant::now();
    let asked = &plan.asked;
    let first = Looked::at(watch, asked, None).map_err(RunError::Before)?;
    let selection = first.select(plan)?;
    ensure_possible(plan, facts, watch, &selection)?;
    refuse_silent(plan, &first)?;
    let mut alive = alive(plan, &selection).await.map_err(RunError::Before)?;
    refuse(plan, &alive)?;
    if plan.dry_run {
        return Ok(lines::planned(
            plan, facts, &first, &selection, alive, paths, began,
        ));
    }

    let mut vips = [selection.vips(), asked.vips.clone()].concat();
    vips.sort_unstable();
    vips.dedup();
    let before = |error: anyhow::Error| RunError::Before(error);
    let working = (Working::begin(&vips, plan.deadline).await).map_err(|e| before(e.into()))?;
    let turn = (Turn::take(plan.deadline).await).map_err(|e| before(e.into()))?;
    let only = match vips[..] {
        [vip] => Some(vip),
        _ => None,
    };
    let start = watch.counters().map_err(|e| before(e.into()))?;
    let looked_at = Instant::now();
    let base = Looked::at(watch, asked, only).map_err(before)?;
    let selection = base.select(plan)?;
    refuse_silent(plan, &base)?;
    alive.extend(changed(&first, &base, &selection));
    alive.extend(leases(&selection).map_err(before)?);
    alive.dedup();
    refuse(plan, &alive)?;

    let mut done = Act {
        plan,
        watch,
        turn: &turn,
        selection: &selection,
        failed: Vec::new(),
        blockers: Vec::new(),
        ours: BTreeMap::new(),
    };
    done.release().await.map_err(RunError::After)?;
    let Act {
        failed,
        mut blockers,
        ours,
        ..
    } = done;
    let after = RunError::After;
    act::wait_for_grants(watch, &base, &selection, only)
        .await
        .map_err(after)?;
    let looks = [
        Looked::at(watch, asked, only).map_err(after)?,
        Looked::at(watch, asked, only).map_err(after)?,
    ];
    let seconds = looked_at.elapsed().as_secs();
    let counters = watch.counters().map_err(|error| after(error.into()))?;
    drop((turn, working));

    let proved = Proved {
        plan,
        base: &base,
        selection: &selection,
        looks: &looks,
        meanwhile: &super::release::since(&counters, &start),
        ours: &ours,
        netns: watch.netns(),
        seconds,
    };
    let report = proved.report(facts, alive, failed, &mut blockers, paths, began);
    Ok(report)
}

/// What a release has shown, from which the report is made.
struct Proved<'a> {
    plan: &'a Plan,
    base: &'a Looked,
    selection: &'a Selection,
    looks: &'a [Looked; 2],
    meanwhile: &'a PerVip,
    ours: &'a BTreeMap<IpAddr, Ours>,
    netns: u32,
    seconds: u64,
}

impl Proved<'_> {
    fn report(
        &self,
        facts: &Facts,
        alive: Vec<Alive>,
        failed: Vec<HostReport>,
        blockers: &mut Vec<String>,
        paths: &mut PathFinder,
        began: Instant,
    ) -> TargetedReport {
        let [first, last] = self.looks;
        let seen = [items(&first.snapshot.table), items(&last.snapshot.table)];
        let (selected, besides) = (
            items(&self.selection.nlm),
            items(&self.selection.besides.nlm),
        );
        let before = items(&self.base.snapshot.table);
        let look = |items, looked: &Looked| proof::Look {
            items,
            exact: looked.snapshot.is_exact(),
        };
        let nlm = Nlm {
            asked: &self.plan.asked,
            selected: &selected,
            besides: &besides,
            before: &before,
            looks: [look(&seen[0], first), look(&seen[1], last)],
            meanwhile: self.meanwhile,
            ours: self.ours,
            netns: self.netns,
        };
        blockers.extend(nlm.blockers());
        let mut bystanders = nlm.bystanders();
        bystanders.extend(self.nfs4(blockers));
        let back = self.come_back();
        if back > 0 && !self.plan.force {
            blockers.push(format!(
                "{back} NFSv4 clients that were not there at first hold state from that address"
            ));
        }
        let others = Others::of(bystanders);
        if others.is_disturbed() {
            blockers.push("a client outside the release lost or gained state".to_owned());
        }
        let mut report = lines::report(
            self.plan,
            facts,
            self.selection,
            (alive, failed),
            paths,
            began,
        );
        report.left = nlm.left().len();
        report.others = others;
        if back > 0 && self.plan.force {
            let text =
                format!("{back} NFSv4 clients of that address have come back as new clients");
            report.warnings.push(text);
        }
        lines::after(&mut report, &nlm, self.base, last, self.selection, paths);
        report.conclude(std::mem::take(blockers));
        report
    }

    /// NFSv4 clients of the address that hold something in the last look and are not those that
    /// were dropped: a client that was alive after all.
    fn come_back(&self) -> usize {
        let Wanted::Client(_) = self.plan.asked.wanted else {
            return 0;
        };
        let asked = Asked {
            all_vips: true,
            ..self.plan.asked.clone()
        };
        let last = &self.looks[1];
        let Ok(now) = select(&asked, &last.ours, last.table4()) else {
            return 0;
        };
        let dropped: BTreeSet<_> = self.selection.nfs4.clients.iter().map(|c| c.id).collect();
        let counts = now.nfs4.counts_of_each();
        let holds = |counts: &Counts4| {
            counts.opens + counts.locks + counts.delegations + counts.layouts + counts.others > 0
        };
        let clients = now.nfs4.clients.iter().zip(&counts);
        clients
            .filter(|(client, counts)| !dropped.contains(&client.id) && holds(counts))
            .count()
    }

    /// NFSv4's blockers and bystanders.
    fn nfs4(&self, blockers: &mut Vec<String>) -> Vec<proof::Bystander> {
        let mut tables = Vec::new();
        for looked in [self.base].into_iter().chain(self.looks) {
            match &looked.states {
                None => return Vec::new(),
                Some(Ok(states)) => tables.push((&states.table, states.exact)),
                Some(Err(error)) => {
                    blockers.push(format!(
                        "what NFSv4 clients hold is not known: {}; --nfs 3 ignores NFSv4",
                        chain(error)
                    ));
                    return Vec::new();
                }
            }
        }
        let [before, first, last] = tables[..] else {
            return Vec::new();
        };
        let nfs4 = Nfs4 {
            expired: matches!(self.plan.asked.wanted, Wanted::Client(_)),
            selected: &self.selection.nfs4,
            besides: &self.selection.besides.nfs4,
            before: before.0,
            looks: [first, last],
            seconds: self.seconds,
        };
        blockers.extend(nfs4.blockers());
        nfs4.bystanders()
    }
}

/// An error if a client is alive and --force is not given.
fn refuse(plan: &Plan, alive: &[Alive]) -> Result<(), RunError> {
    match alive.is_empty() || plan.force || plan.dry_run {
        true => Ok(()),
        false => Err(RunError::Alive(alive.to_vec())),
    }
}

/// An error if a lock would be revoked whose client will not give it up: see [`revoked`].
fn refuse_silent(plan: &Plan, looked: &Looked) -> Result<(), RunError> {
    let (Some(_), Wanted::File { on, .. }) = (&plan.asked.whole, &plan.asked.wanted) else {
        return Ok(());
    };
    let table = match &looked.states {
        Some(Ok(states)) => &states.table,
        Some(Err(error)) => {
            let reason = format!("what NFSv4 clients hold is not known: {}", chain(error));
            return Err(RunError::Unsupported(reason));
        }
        None => return Ok(()),
    };
    let lease = alive::lease().map_err(|error| RunError::Before(error.into()))?;
    let lockers = revoked::lockers(table, |file| on.filesystem().has(file));
    match revoked::silent(lockers, lease).first() {
        None => Ok(()),
        Some(client) => Err(RunError::Refused(Refusal::Silent {
            client: client.address,
            name: client.name.to_string(),
        })),
    }
}

/// An error if this kernel or node cannot release the selection.
fn ensure_possible(
    plan: &Plan,
    facts: &Facts,
    watch: &Watch,
    selection: &Selection,
) -> Result<(), RunError> {
    if facts.nfsd_threads.unwrap_or(0) == 0 && !selection.is_empty() {
        let reason = "nfsd is stopped in this network namespace: start it (`systemctl start \
                      nfs-server`), or stop lockd too, which releases all of its locks";
        return Err(RunError::Unsupported(reason.to_owned()));
    }
    match &plan.asked.whole {
        Some(Whole::Filesystem(_)) if !watch.revokes_states() => Err(RunError::Unsupported(
            "unlock_filesystem of this kernel does not revoke NFSv4 state (requires 6.9)"
                .to_owned(),
        )),
        Some(Whole::Export(_)) => {
            let netlink = NfsdNetlink::open().map_err(|e| RunError::Unsupported(chain(&e)))?;
            match netlink.offers(Command::UnlockExport) {
                true => Ok(()),
                false => Err(RunError::Unsupported(
                    "this kernel cannot release an export (requires 7.2)".to_owned(),
                )),
            }
        }
        _ => Ok(()),
    }
}

/// The clients of the selection that are alive.
async fn alive(plan: &Plan, selection: &Selection) -> anyhow::Result<Vec<Alive>> {
    let mut clients: BTreeMap<IpAddr, NlmVersion> = BTreeMap::new();
    for table in [&selection.nlm, &selection.besides.nlm] {
        for id in table.active_hosts() {
            let host = table.host(id).key;
            clients.insert(host.client, host.version);
        }
    }
    let asked = stream::iter(clients).map(async |(client, version)| {
        let service = answering(client, version, plan.answer_within).await?;
        let sign = Sign::Answers { service };
        Some(Alive { client, sign })
    });
    let mut alive: Vec<Alive> = (asked.buffer_unordered(ASKED_AT_A_TIME))
        .filter_map(std::future::ready)
        .collect()
        .await;
    alive.sort_by_key(|alive| alive.client);
    alive.extend(leases(selection)?);
    Ok(alive)
}

/// NFSv4 clients of the selection whose lease is not over.
fn leases(selection: &Selection) -> anyhow::Result<Vec<Alive>> {
    let clients = selection.nfs4.clients.iter();
    let clients: Vec<_> = clients.chain(&selection.besides.nfs4.clients).collect();
    if clients.is_empty() {
        return Ok(Vec::new());
    }
    let lease = alive::lease()?;
    Ok((clients.into_iter())
        .filter_map(|client| alive::of_lease(client, lease))
        .collect())
}

/// Clients of the selection that called lockd between two looks, or whose NFSv3 locks, waiters or
/// shares changed.
fn changed(first: &Looked, second: &Looked, selection: &Selection) -> Vec<Alive> {
    let hosts = selection.nlm.active_hosts().into_iter();
    let clients: BTreeSet<IpAddr> = hosts.map(|id| selection.nlm.host(id).key.client).collect();
    let of =
        |table: &LockTable, client| -> Items { items(&table.part(|host| host.client == client)) };
    let calls = |table: &LockTable, client| -> BTreeMap<Host, u64> {
        let hosts = table.hosts.iter().filter(|host| host.key.client == client);
        hosts.map(|host| (host.key, host.expires)).collect()
    };
    (clients.into_iter())
        .filter_map(|client| {
            let sign = if of(&first.ours, client) != of(&second.ours, client) {
                Sign::Changed
            } else if calls(&first.ours, client) != calls(&second.ours, client) {
                Sign::Called
            } else {
                return None;
            };
            Some(Alive { client, sign })
        })
        .collect()
}
