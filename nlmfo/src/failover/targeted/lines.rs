//! The lines of a targeted release's report.

use std::net::IpAddr;
use std::time::Instant;

use super::alive::Alive;
use super::id::RowId;
use super::proof::{Nlm, held_ids, is_taken4, released};
use super::report::{LocalLine, Nfs4Part, OnFile, Others, Row, TargetedReport};
use super::select::{Selection, Wanted, holders, pick};
use super::{Looked, Plan};
use crate::causes::chain;
use crate::failover::evidence::{self, Item, items};
use crate::failover::report::Verdict;
use crate::failover::revoked;
use crate::kernel::locks::{Listed, command_line};
use crate::kernel::path::PathFinder;
use crate::kernel::preflight::Facts;
use crate::kernel::{self, netns};
use crate::observe::describe::{Described, FileLine, LockLine};
use crate::observe::local::locals;
use crate::observe::states::StateTable;
use crate::observe::states::describe::{ClientLine4, StateLine, describe};
use crate::observe::table::{FileInfo, Inode, LockTable};
use crate::release::HostReport;
use crate::times::milliseconds;

/// Of a dry run.
pub(super) fn planned(
    plan: &Plan,
    facts: &Facts,
    seen: &Looked,
    selection: &Selection,
    alive: Vec<Alive>,
    paths: &mut PathFinder,
    began: Instant,
) -> TargetedReport {
    let mut report = report(plan, facts, selection, (alive, Vec::new()), paths, began);
    report.nfs4.unknown = unknown(seen);
    let files = files(plan, selection);
    let gone = items(&selection.nlm);
    let rest = pick(&seen.ours, |item| !gone.contains_key(item));
    report.on_file = on_file(&files, &rest, seen, selection, paths);
    report
}

/// What was released, or would be.
pub(super) fn report(
    plan: &Plan,
    facts: &Facts,
    selection: &Selection,
    (alive, failed): (Vec<Alive>, Vec<HostReport>),
    paths: &mut PathFinder,
    began: Instant,
) -> TargetedReport {
    let table = &selection.nlm;
    let described = Described::new(table, paths);
    let row = |items: Vec<Item>| items.into_iter().map(|item| RowId::of(&item));
    let mut report = TargetedReport {
        schema: TargetedReport::SCHEMA,
        node: netns::node(),
        kernel: facts.release.clone(),
        dry_run: plan.dry_run,
        forced: plan.force && !alive.is_empty(),
        wanted: plan.title.clone(),
        verdict: Verdict::Planned,
        blockers: Vec::new(),
        warnings: Vec::new(),
        locks: (row(evidence::locks(table).collect()).zip(described.locks()))
            .map(|(id, line)| Row { id, line })
            .collect(),
        waiters: (row(evidence::waiters(table).collect()).zip(described.waiters()))
            .map(|(id, line)| Row { id, line })
            .collect(),
        shares: (row(evidence::shares(table).collect()).zip(described.shares()))
            .map(|(id, line)| Row { id, line })
            .collect(),
        nfs4: Nfs4Part {
            unknown: None,
            left_out: !plan.asked.nfs4,
            clients: selection
                .nfs4
                .clients
                .iter()
                .map(ClientLine4::from)
                .collect(),
            states: describe(&selection.nfs4, paths),
        },
        besides: besides(selection, paths),
        failed,
        left: 0,
        taken: Vec::new(),
        nfs4_taken: Vec::new(),
        on_file: OnFile::default(),
        others: Others::default(),
        took_ms: 0.0,
        alive,
    };
    report.warn();
    let used = selection.vips();
    let is_foreign =
        |vip: &&IpAddr| !used.contains(vip) && !netns::has_address(**vip).unwrap_or(true);
    for vip in plan.asked.vips.iter().filter(is_foreign) {
        (report.warnings).push(format!("{vip} is not an address of this node"));
    }
    report.took_ms = milliseconds(began.elapsed());
    report
}

impl TargetedReport {
    /// Says what a client that is alive will notice.
    fn warn(&mut self) {
        if self.alive.is_empty() {
            return;
        }
        if !self.locks.is_empty() || !self.shares.is_empty() {
            let text = "a client that is alive does not notice that its NFSv3 lock is gone: it \
                        continues to write, while another client may get the lock";
            self.warnings.push(text.to_owned());
        }
        if !self.nfs4.clients.is_empty() {
            let text = "an NFSv4 client that is alive gets errors for what it has lost: its \
                        applications see EIO";
            self.warnings.push(text.to_owned());
        }
    }

    /// Sets the verdict.
    pub(super) fn conclude(&mut self, blockers: Vec<String>) {
        self.blockers = blockers;
        self.verdict = match self.blockers.is_empty() {
            true => Verdict::Confirmed,
            false => Verdict::NotConfirmed,
        };
    }
}

/// What was seen after the release.
pub(super) fn after(
    report: &mut TargetedReport,
    nlm: &Nlm,
    before: &Looked,
    last: &Looked,
    selection: &Selection,
    paths: &mut PathFinder,
) {
    let gone = items(&selection.nlm);
    let besides = items(&selection.besides.nlm);
    let states = selection
        .nfs4
        .states
        .iter()
        .chain(&selection.besides.nfs4.states);
    let released = released(gone.keys().chain(besides.keys()), states);
    let taken = pick(&last.ours, |item| nlm.is_taken(item, &released));
    report.taken = Described::new(&taken, paths).locks().collect();
    if let (Some(before), Some(last)) = (before.table4(), last.table4()) {
        let had = held_ids(before);
        let taken = holders(last, |state| is_taken4(&had, last, state, &released));
        report.nfs4_taken = describe(&taken, paths);
    }
    report.nfs4.unknown = unknown(last);
    if nlm.asked.whole.is_some() {
        let states = last.table4().map(revoked::keepers).unwrap_or_default();
        report.warnings.extend(states.first().map(|client| {
            format!(
                "{} has not given its revoked locks up yet: this kernel crashes if the client falls \
                 silent and the filesystem is unmounted; if it does, drop the client first \
                 (`nlmfo release --client {}`)",
                client.address, client.address
            )
        }));
    }
    let files = files_of(nlm.asked.wanted.clone(), selection);
    let taken = items(&taken);
    let rest = pick(&last.ours, |item| !taken.contains_key(item));
    report.on_file = on_file(&files, &rest, last, &Selection::default(), paths);
}

fn unknown(seen: &Looked) -> Option<String> {
    match &seen.states {
        Some(Err(error)) => Some(chain(error)),
        _ => None,
    }
}

fn besides(selection: &Selection, paths: &mut PathFinder) -> Vec<String> {
    let described = Described::new(&selection.besides.nlm, paths);
    let locks = described.locks().map(|line| words(&line));
    let waiters = (described.waiters()).map(|line| format!("waiter for {}", words(&line.lock)));
    let shares = (described.shares()).map(|line| {
        format!(
            "{} via {}: share of {}",
            line.host.client, line.host.vip, line.file
        )
    });
    let mut all: Vec<String> = locks.chain(waiters).chain(shares).collect();
    let states = describe(&selection.besides.nfs4, paths);
    all.extend(states.iter().map(|state| format!("NFSv4 {state}")));
    all
}

fn words(line: &LockLine) -> String {
    format!(
        "{} via {}: {} lock {} of {}",
        line.host.client, line.host.vip, line.mode, line.range, line.file
    )
}

fn files(plan: &Plan, selection: &Selection) -> Vec<Inode> {
    files_of(plan.asked.wanted.clone(), selection)
}

/// The files whose remaining state is reported; none for a client, which may have any number of files.
fn files_of(wanted: Wanted, selection: &Selection) -> Vec<Inode> {
    match wanted {
        Wanted::Client(_) => Vec::new(),
        Wanted::File { on, .. } => on.inode().into_iter().collect(),
        Wanted::Row(_) => (selection.nlm.active_files().into_iter())
            .map(|id| {
                let file = selection.nlm.file(id);
                (file.major, file.minor, file.ino)
            })
            .collect(),
    }
}

/// What remains on the files in `table`: NFSv4 state outside the selection, and locks of others.
fn on_file(
    files: &[Inode],
    table: &LockTable,
    seen: &Looked,
    selection: &Selection,
    paths: &mut PathFinder,
) -> OnFile {
    if files.is_empty() {
        return OnFile::default();
    }
    let rest = pick(table, |item| files.contains(&item.file));
    let locks: Vec<LockLine> = Described::new(&rest, paths).locks().collect();
    let nothing = StateTable::default();
    let states = seen.table4().unwrap_or(&nothing);
    let goes = held_ids(&selection.nfs4);
    let stays = holders(states, |state| {
        let is_on = |file: &FileInfo| files.contains(&file.inode());
        state.is_held()
            && state.file.as_ref().is_some_and(is_on)
            && !goes.contains(&super::proof::key(states, state))
    });
    OnFile {
        local: local(files, &seen.ours, states),
        nfs4: describe(&stays, paths) as Vec<StateLine>,
        locks,
    }
}

/// Locks and leases on the files that do not belong to NFS clients.
fn local(files: &[Inode], nlm: &LockTable, states: &StateTable) -> Vec<LocalLine> {
    // A lock that cannot be listed is not worth the report.
    let Ok(all) = kernel::locks::held() else {
        return Vec::new();
    };
    let mut locals = locals(all, nlm, states);
    locals.retain(|lock| files.contains(&(lock.major, lock.minor, lock.ino)));
    let line = |lock: Listed| LocalLine {
        command: u32::try_from(lock.pid).ok().and_then(command_line),
        class: lock.class,
        write: lock.write,
        pid: lock.pid,
        start: lock.start,
        end: lock.end,
        file: FileLine {
            dev: format!("{}:{}", lock.major, lock.minor),
            ino: lock.ino,
            fh: String::new(),
            path: None,
        },
    };
    locals.into_iter().map(line).collect()
}
