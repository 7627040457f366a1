//! The release half: records what is held, stops the server, and verifies that nothing is left.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tracing::warn;

use super::coverage::Coverage;
use super::present::Held;
use super::report::StopReport;
use super::unrecorded::Unrecorded;
use super::{Clients, NotReady, Server, ServerError, delegations, identity, reserve};
use crate::causes::chain;
use crate::failover::noted;
use crate::failover::record::{Record, RecordError};
use crate::failover::watch::Watch;
use crate::files::{self, FileError};
use crate::kernel::grace::SeenGrace;
use crate::kernel::nfsd::Nfsd;
use crate::kernel::nfsdcld::{Records, RecordsError};
use crate::kernel::path::PathFinder;
use crate::kernel::{netns, nfsd};
use crate::notify::state_dir::{self, Readers, StateDir};
use crate::observe::error::ObserveError;
use crate::observe::states::describe::{StateLine, describe};
use crate::observe::states::{Kind, State, StateTable};
use crate::observe::table::LockTable;
use crate::rpc::nfs4::Identity;
use crate::times::milliseconds;

/// Maximum time to read NFSv4 state again while it changes.
const READ_TIMEOUT: Duration = Duration::from_secs(3);

/// The same, for the last snapshot before the stop.
const LAST_TIMEOUT: Duration = Duration::from_secs(1);

/// What to stop, and how.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where the client books are, and the record.
    pub state: StateDir,
    pub kernel: String,
    /// Store a record also while clients still reclaim what no record has.
    pub partial: bool,
    /// The identity that NFSv4 clients know, if it is known.
    pub identity: Option<Identity>,
    /// The addresses that move, if it is to start on another node; empty: all that clients use.
    pub moving: Option<Vec<IpAddr>>,
}

/// Why a server was not stopped, or not recorded.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Observe(#[from] ObserveError),
    #[error("creating {}", path.display())]
    Folder {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("reading the mounted filesystems")]
    Paths(#[source] std::io::Error),
    #[error("the server was not stopped, because nfsdcld's records cannot be changed")]
    Records(#[source] RecordsError),
    #[error("the server was not stopped, because locks would be lost (--force stops it):\n  {}", .0.join("\n  "))]
    Refused(Vec<String>),
    #[error(
        "the server may be half stopped; the record is stored: start the server, then run `nlmfo restart --start-only`"
    )]
    Stop(#[source] ServerError),
}

/// Where the record of a stop is, until a start has used it. Named by the node: nodes may share the
/// directory. For a server of its own, the name of the node is its scope, wherever it runs.
pub fn record_path(state: &StateDir) -> PathBuf {
    let node = netns::node().replace('/', "_");
    folder(state).join(format!("{node}.json"))
}

fn folder(state: &StateDir) -> PathBuf {
    state.path().join("restart")
}

/// The record of a stop that no start has used.
pub fn stored(state: &StateDir) -> Result<Option<Record>, RecordError> {
    match Record::read(&record_path(state)) {
        Ok(record) => Ok(Some(record)),
        Err(RecordError::File(error)) if error.is_absence() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether leases may be paused while what is recorded comes back. A client that does not get its
/// delegation back loses the locks that it covered; without a record, there may be such clients.
pub fn allows_pause(state: &StateDir) -> bool {
    let is_delegation = |line: &StateLine| line.kind == Kind::Delegation;
    stored(state).is_ok_and(|record| record.is_some_and(|one| !one.nfs4.iter().any(is_delegation)))
}

/// Removes the record after a start has used it.
pub fn used(state: &StateDir) -> Result<(), FileError> {
    let path = record_path(state);
    files::remove(&path).map_err(FileError::io("removing", &path))
}

/// Renames a record that `error` says is damaged or no record: it would make the next stop fail.
/// Returns a note for the report. After any other error the record stays.
pub fn set_aside(state: &StateDir, error: &RecordError) -> Result<Option<String>, FileError> {
    let (RecordError::Damaged { .. } | RecordError::Foreign { .. }) = error else {
        return Ok(None);
    };
    let path = record_path(state);
    let aside = path.with_extension("damaged");
    let renamed = std::fs::rename(&path, &aside);
    renamed.map_err(FileError::io("renaming", &path))?;
    Ok(Some(format!(
        "{}; it was renamed to {}",
        chain(error),
        aside.display()
    )))
}

/// What is recorded, and where.
pub struct Recorded {
    record: Record,
    /// The record of an interrupted restart.
    earlier: Option<Record>,
    paths: PathFinder,
    report: StopReport,
    unrecorded: Unrecorded,
    /// Why nfsdcld's records could not be read.
    no_records: Option<RecordsError>,
    /// Clients still reclaim what no record has.
    is_partial: bool,
}

/// Records what is held. The record is stored only when the server is about to stop: a record on disk
/// means that its locks are to come back.
pub fn record(server: &impl Server, plan: &Plan, watch: &mut Watch) -> Result<Recorded, StopError> {
    let began = Instant::now();
    reserve::free(&plan.state);
    let folder = folder(&plan.state);
    state_dir::create(&folder, Readers::Nobody).map_err(|source| StopError::Folder {
        path: folder,
        source,
    })?;
    let aside = match stored(&plan.state) {
        Err(error) => set_aside(&plan.state, &error).map_err(RecordError::from)?,
        Ok(_) => None,
    };
    let place = Record::place(&record_path(&plan.state))?;
    let mut paths = PathFinder::new(0).map_err(StopError::Paths)?;
    let held = Held::read(watch, READ_TIMEOUT)?;
    let mut record = of(&held, plan, server, &mut paths);
    let mut report = StopReport::new(server.title(), record_path(&plan.state));
    report.notes.extend(aside);
    let earlier = place.earlier().cloned();
    let is_partial = earlier.is_none() && SeenGrace::now().stands();
    if is_partial {
        record.changing = true;
        report.notes.push(STILL_RECLAIMING.to_owned());
    }
    if let Some(earlier) = &earlier {
        report.recalled = recall(&mut record, earlier, &held);
    }
    for &vip in &record.vips {
        let part = held.locks.part(|host| host.vip == vip);
        if let Err(error) = noted::before_release(&plan.state, vip, &part) {
            let error = chain(&error);
            report
                .notes
                .push(format!("the client book of {vip}: {error}"));
        }
    }
    let (unrecorded, no_records) = match Unrecorded::of(server, &held) {
        Ok(found) => (found, None),
        Err(error) => (Unrecorded::default(), Some(error)),
    };
    report.unknown = unrecorded.cut();
    report.recorded(&record);
    report.took_ms = milliseconds(began.elapsed());
    Ok(Recorded {
        record,
        earlier,
        paths,
        report,
        unrecorded,
        no_records,
        is_partial,
    })
}

/// Verifies again that nothing is left after a recorded stop.
///
/// # Errors
/// If what is held cannot be read.
pub fn again(
    server: &impl Server,
    state: &StateDir,
    record: &Record,
    watch: &mut Watch,
) -> Result<StopReport, StopError> {
    let mut report = StopReport::new(server.title(), record_path(state));
    report.recorded(record);
    report
        .notes
        .push("the server had already been stopped".to_owned());
    report.left = left(&Held::read(watch, READ_TIMEOUT)?);
    report.stopped = report.left.is_empty();
    report.stopped_after_ms = Some(0.0);
    Ok(report)
}

/// What is not known when a server stops in a grace that no record explains.
const STILL_RECLAIMING: &str = "the server was in grace without a record of what clients held before: \
                                what they have not reclaimed yet is not recorded";

impl Recorded {
    /// Why a stop would lose locks; empty if no reason is known.
    pub fn blockers(&self, plan: &Plan, missing: &[NotReady]) -> Vec<String> {
        let mut blockers = needed(missing, &self.record);
        if let Some(moving) = plan.moving.as_deref().filter(|moving| !moving.is_empty()) {
            blockers.extend(staying(&self.record, moving));
        }
        for name in &self.report.unknown {
            blockers.push(format!(
                "nfsdcld does not know the NFSv4 client {name}: it cannot reclaim"
            ));
        }
        if let Some(error) = &self.no_records {
            blockers.push(format!(
                "nfsdcld's records cannot be read, and NFSv4 clients cannot reclaim without them: {}",
                chain(error)
            ));
        }
        blockers
    }

    /// Stores the record, for another program that stops the server.
    pub fn store(
        mut self,
        plan: &Plan,
        unfenced: Option<String>,
    ) -> Result<StopReport, RecordError> {
        self.record.changing |= unfenced.is_some();
        self.report.unfenced(unfenced);
        self.report.changing = self.record.changing;
        put(&mut self.record, plan)?;
        // The other program stops the server now.
        match (self.unrecorded.add(), self.no_records) {
            (Ok(added), None) => self.report.added = added.to_vec(),
            (_, Some(error)) | (Err(error), None) => self.report.notes.push(format!(
                "NFSv4 clients that nfsdcld does not know cannot reclaim: {}",
                chain(&error)
            )),
        }
        Ok(self.report)
    }

    /// Takes another snapshot, stops the server and verifies that nothing is left. `unfenced` is why
    /// lock calls are not fenced: another client may get a lock during the stop.
    pub async fn stop(
        mut self,
        server: &impl Server,
        plan: &Plan,
        unfenced: Option<String>,
        watch: &mut Watch,
    ) -> Result<StopReport, StopError> {
        let began = Instant::now();
        let before = watch.counters()?;
        let last = Held::read(watch, LAST_TIMEOUT)?;
        let mut record = of(&last, plan, server, &mut self.paths);
        if let Some(earlier) = &self.earlier {
            self.report.recalled = recall(&mut record, earlier, &last);
        }
        record.changing |= unfenced.is_some() || self.is_partial;
        record.connections.extend(server.connections());
        self.report.unfenced(unfenced);
        let is_stored = plan.partial || !self.is_partial;
        if is_stored {
            put(&mut record, plan)?;
        }
        // Again, since a client may have begun to hold something.
        let mut unrecorded = match Unrecorded::of(server, &last) {
            Ok(found) => found,
            Err(error) if self.no_records.is_none() => return Err(StopError::Records(error)),
            // The stop is forced.
            Err(_) => Unrecorded::default(),
        };
        self.report.added = unrecorded.add().map_err(StopError::Records)?.to_vec();
        let stopping = Instant::now();
        // Clients back off between attempts to connect: the server must start again soon.
        if let Err(error) = server.stop().await {
            if nfsd::runs()
                && let Err(error) = unrecorded.take_back()
            {
                warn!(
                    error = chain(&error),
                    "nfsdcld's records have clients that nlmfo added"
                );
            }
            return Err(StopError::Stop(error));
        }
        self.report.stopped_after_ms = Some(milliseconds(stopping.elapsed()));
        let after = watch.counters()?;
        let mut held = Held::read(watch, READ_TIMEOUT)?;
        if release_rest(&held.locks) {
            held = Held::read(watch, READ_TIMEOUT)?;
        }
        self.report.left = left(&held);
        self.report.stopped = self.report.left.is_empty();
        let mut after = after.iter().filter(|(vip, _)| server.serves(**vip));
        let is_changed = after.any(|(vip, counters)| {
            let before = before.get(vip).copied().unwrap_or_default();
            counters.client_changes() > before.client_changes()
        });
        if is_changed {
            record.changing = true;
            if is_stored {
                put(&mut record, plan)?;
            }
        }
        self.report.recorded(&record);
        self.report.took_ms += milliseconds(began.elapsed());
        Ok(self.report)
    }
}

/// What is missing and is needed by clients that hold something.
fn needed(missing: &[NotReady], record: &Record) -> Vec<String> {
    let nfs3 = !record.locks.is_empty() || !record.shares.is_empty();
    let nfs4 = !record.nfs4.is_empty();
    let is_needed = |one: &&NotReady| match one.clients {
        Clients::Nfs3 => nfs3,
        Clients::Nfs4 => nfs4,
    };
    let needed = missing.iter().filter(is_needed);
    needed.map(|one| one.reason.clone()).collect()
}

/// The addresses that clients use and that do not move.
fn staying(record: &Record, moving: &[IpAddr]) -> Vec<String> {
    let staying = record.vips.iter().filter(|vip| !moving.contains(vip));
    let words = staying.map(|vip| {
        format!("clients hold state through {vip}, which is not among the VIPs that move: add --vip {vip}")
    });
    words.collect()
}

fn put(record: &mut Record, plan: &Plan) -> Result<(), RecordError> {
    record.put(&Record::place(&record_path(&plan.state))?)
}

/// The record of all addresses.
fn of(held: &Held, plan: &Plan, server: &impl Server, paths: &mut PathFinder) -> Record {
    let hosts = held.locks.active_hosts().into_iter();
    let mut vips: BTreeSet<IpAddr> = hosts.map(|id| held.locks.host(id).key.vip).collect();
    let states = held.states.as_ref().map_or_else(
        |_| StateTable::default(),
        |states| {
            let mut states = states.clone();
            states.states.retain(State::is_held);
            delegations::remove_directories(&mut states, paths);
            states
        },
    );
    vips.extend(states.clients.iter().flat_map(|client| &client.vips));
    let vips: Vec<IpAddr> = vips.into_iter().collect();
    let tables = std::iter::once(&held.locks);
    let mut record = Record::of(tables, paths, netns::node(), plan.kernel.clone(), &vips);
    record.add_nfs4(describe(&states, paths));
    // What could not be read may come back too.
    record.changing = !held.exact;
    record.identity.clone_from(&plan.identity);
    if let Some(identity) = &plan.identity {
        identity::remember(&plan.state, identity);
    }
    let records = server.nfs4_records().map(|path| Records::open(&path));
    record.epoch = records.and_then(Result::ok).map(|records| records.epoch());
    record
}

/// Adds what an earlier record has and is not held now: it was lost over an interrupted restart, and
/// its clients may not know that. Returns how much was added.
fn recall(record: &mut Record, earlier: &Record, held: &Held) -> usize {
    let missing = Coverage::of(earlier, held.present()).missing;
    let recalled = missing.len();
    for lock in missing.locks {
        let host = &lock.host;
        let clients = earlier.clients.iter().filter(|client| client.host == *host);
        for client in clients {
            if !record.clients.contains(client) {
                record.clients.push(client.clone());
            }
        }
        record.vips.push(host.vip);
        record.locks.push(lock);
    }
    record.shares.extend(missing.shares);
    (record.vips).extend(missing.nfs4.iter().flat_map(|line| &line.client.vips));
    record.add_nfs4(missing.nfs4);
    record.vips.sort_unstable();
    record.vips.dedup();
    record.connections.clone_from(&earlier.connections);
    recalled
}

/// Releases the NFSv3 locks that the stop left. Returns whether anything was tried.
///
/// 6.1's lockd keeps them as long as it serves another network namespace, an NFSv3 client's too
/// (fs/lockd/svc.c, `lockd_down_net`; seen on 6.1.192).
fn release_rest(locks: &LockTable) -> bool {
    let hosts = locks.active_hosts().into_iter();
    let vips: BTreeSet<IpAddr> = hosts.map(|id| locks.host(id).key.vip).collect();
    for &vip in &vips {
        let written = Nfsd::mounted().and_then(|nfsd| nfsd.unlock_ip_of_stopped(vip));
        if let Err(error) = written {
            warn!(error = chain(&error), %vip, "the locks that the stop left cannot be released");
        }
    }
    !vips.is_empty()
}

/// What is left after the stop.
fn left(held: &Held) -> Vec<String> {
    let mut left = held.left();
    if nfsd::runs() {
        left.push("nfsd still has threads".to_owned());
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::record::sample::{lock, record, state};

    #[test]
    fn only_clients_that_hold_something_need_their_daemon() {
        let missing = [Clients::Nfs3, Clients::Nfs4].map(|clients| NotReady {
            clients,
            reason: format!("{clients:?}"),
        });
        let mut record = record(&["10.77.0.1"]);
        assert!(needed(&missing, &record).is_empty());
        record.locks = vec![lock("10.77.0.1", 0, 9)];
        assert_eq!(needed(&missing, &record), ["Nfs3"]);
        record.nfs4 = vec![state(Kind::Open)];
        assert_eq!(needed(&missing, &record), ["Nfs3", "Nfs4"]);
        record.locks.clear();
        assert_eq!(needed(&missing, &record), ["Nfs4"]);
    }
}
