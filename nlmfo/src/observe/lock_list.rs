//! Reading the kernel's list of all locks.
//!
//! Where the programs know the lists, they walk them in runs, each in the first call that a read of
//! `/proc/locks` makes: the cost is proportional to the number of locks. Else the file is read page by
//! page, for each of which the kernel walks from the first lock on.

use std::io::{Read, Seek};
use std::time::{Duration, Instant};

use aya::Pod;
use nlmfo_common::record::{LockRecord, kind, list};
use nlmfo_common::state::{self, RangeRecord};
use tracing::debug;

use super::error::ObserveError;
use super::snapshot::{Snapshots, record};
use crate::kernel;

/// Maximum time for which a run may block every lock operation of the node.
const RUN: Duration = Duration::from_millis(1);

/// Maximum time to walk a list again whose last lock was removed between two runs.
const WALK_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum number of runs in a row without progress: the kernel skips a probe that is hit within
/// another one.
const MISSES: u32 = 3;

/// A record of a lock in the list.
pub(super) trait Listed: Pod {
    const KIND: u32;

    /// Address of the `file_lock`.
    fn address(&self) -> u64;

    /// Whether it is held, not a request that waits behind the one before it.
    fn is_held(&self) -> bool {
        true
    }
}

impl Listed for LockRecord {
    const KIND: u32 = kind::LOCK;

    fn address(&self) -> u64 {
        self.fl
    }
}

impl Listed for RangeRecord {
    const KIND: u32 = state::kind::RANGE;

    fn address(&self) -> u64 {
        self.fl
    }

    fn is_held(&self) -> bool {
        self.waits == 0
    }
}

/// How the list was read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Walked {
    /// The list was read in one run, so nothing changed. Between runs, locks come and go: one that did
    /// both may be recorded twice.
    pub runs: u32,
    /// The longest time for which the lists were blocked, if it is known.
    pub longest: Option<Duration>,
}

impl Snapshots {
    /// Reads the list. `snapshot_begin` must have been run.
    pub(super) fn read_list<R: Listed>(
        &mut self,
        into: &mut Vec<R>,
    ) -> Result<Walked, ObserveError> {
        if self.layout().lock_lists.cpus != 0 && !self.lists_unknown {
            if let Some(walked) = self.walk_lists(into)? {
                return Ok(walked);
            }
            into.clear();
            self.update(|control| control.list = list::ONE_BY_ONE)?;
        }
        self.read_pages(into)
    }

    /// Walks the lists in runs; none if they are not at the expected address, or change too fast.
    fn walk_lists<R: Listed>(&mut self, into: &mut Vec<R>) -> Result<Option<Walked>, ObserveError> {
        let mut file = kernel::locks::open().map_err(ObserveError::ProcLocks)?;
        let began = Instant::now();
        let mut walked = Walked::default();
        let mut reached = (0, [0; 2]);
        let mut misses = 0;
        loop {
            self.update(|control| {
                control.list = list::WALK;
                control.limit = RUN.as_nanos() as u64;
            })?;
            // One byte: the kernel then shows only the first lock.
            let length = file
                .rewind()
                .and_then(|()| file.read(&mut self.text[..1]))
                .map_err(ObserveError::ProcLocks)?;
            while let Some(item) = self.records.next() {
                into.extend(record::<R>(&item, R::KIND));
            }
            let control = self.control()?;
            walked.runs += 1;
            walked.longest = Some(Duration::from_nanos(control.longest));
            match control.list {
                list::DONE => break,
                list::WALK if length == 0 => break,
                list::PAUSED if reached != (control.cpu, control.passed) => {
                    reached = (control.cpu, control.passed);
                    misses = 0;
                }
                list::PAUSED | list::WALK if misses < MISSES => misses += 1,
                list::PAUSED | list::WALK => return Err(ObserveError::Lost { lost: 1 }),
                list::TORN if began.elapsed() < WALK_TIMEOUT => {
                    debug!(control.cpu, "a list of locks changed while it was walked");
                    into.truncate(into.len().saturating_sub(control.listed as usize));
                    self.update(|control| {
                        control.passed = [0; 2];
                        control.listed = 0;
                        control.waiter = 0;
                        control.waited = 0;
                    })?;
                }
                list::TORN => return Ok(None),
                _ => {
                    self.lists_unknown = true;
                    debug!("the kernel's lists of locks are not where they should be");
                    return Ok(None);
                }
            }
        }
        debug!(
            locks = into.len(),
            walked.runs,
            ?walked.longest,
            "walked the kernel's lists of locks"
        );
        Ok(Some(walked))
    }

    /// Reads `/proc/locks` to its end. Each read shows at most a page of text,
    /// and the records are fetched after each: the ring cannot overflow.
    fn read_pages<R: Listed>(&mut self, into: &mut Vec<R>) -> Result<Walked, ObserveError> {
        let mut file = kernel::locks::open().map_err(ObserveError::ProcLocks)?;
        let mut walked = Walked::default();
        let mut lines = 0;
        let mut repeated = 0;
        let shown_before = self.control()?.shown;
        loop {
            let length = file.read(&mut self.text).map_err(ObserveError::ProcLocks)?;
            lines += kernel::locks::holders(&self.text[..length]);
            let mut first = true;
            while let Some(item) = self.records.next() {
                let Some(lock) = record::<R>(&item, R::KIND) else {
                    continue;
                };
                // A lock whose line no longer fitted the page is shown again by
                // the next read.
                let is_first = std::mem::take(&mut first);
                let last = into.iter().rposition(Listed::is_held);
                if let Some(last) = last.filter(|_| is_first)
                    && into[last].address() == lock.address()
                {
                    into.truncate(last);
                    repeated += 1;
                }
                into.push(lock);
            }
            if length == 0 {
                break;
            }
            walked.runs += 1;
        }
        // A line without a call of the probe is a lock that we did not see.
        let shown = self.control()?.shown - shown_before;
        if lines > shown {
            return Err(ObserveError::Lost {
                lost: lines - shown,
            });
        }
        debug!(
            lines,
            shown,
            repeated,
            locks = into.len(),
            "read /proc/locks"
        );
        Ok(walked)
    }
}
