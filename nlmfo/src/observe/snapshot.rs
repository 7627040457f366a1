//! Takes a snapshot: exact for locks of any age, at any moment, at no cost for lockd's clients.
//!
//! Our thread reads `/proc/locks` while a probe on `locks_show` writes a record for each of lockd's
//! locks ([`super::lock_list`]); then a program of ours walks lockd's file table for file handles,
//! waiters and shares, and sums up each file's locks by another of the kernel's lists. The snapshot is
//! exact only if both walks saw the same locks; otherwise it is taken again.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aya::Pod;
use aya::maps::{Array, MapData, RingBuf};
use nlmfo_common::Addr;
use nlmfo_common::layout::Layout;
use nlmfo_common::record::{Control, HOSTS_PER_RUN, HostRecord, kind, walk};
use tracing::debug;

use super::assemble::{Assembled, Records, assemble};
use super::error::ObserveError;
use super::programs::{Probe, Programs, map_error};
use super::states::take::Ready;
use super::table::LockTable;
use crate::interrupt;

pub(super) const PROBES: &[Probe] = &[Probe {
    program: "show",
    function: "locks_show",
}];

pub(super) const BEGIN: &str = "snapshot_begin";
const WALK: &str = "walk_files";
const READ_HOSTS: &str = "read_hosts";

/// Steps of one run of the walk, which occupies its CPU for some milliseconds.
const WALK_STEPS: u64 = 1 << 14;

/// The limit of `bpf_loop` (`BPF_MAX_LOOPS`, `kernel/bpf/bpf_iter.c`).
const MAX_WALK_STEPS: u64 = 1 << 23;

/// How long to walk the file table again while it changes. A bucket takes microseconds, so a failure
/// for this long is not caused by traffic.
const TABLE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a snapshot found.
#[derive(Debug)]
pub struct Snapshot {
    /// What lockd holds, of all network namespaces.
    pub table: LockTable,
    /// Files whose locks kept changing while they were read; empty in an exact
    /// snapshot.
    pub unsettled: Vec<super::table::FileId>,
    /// Locks whose host was gone when it was looked up; none in an exact snapshot.
    pub orphans: usize,
    /// How often the kernel's lists were read.
    pub passes: u32,
    /// From the first pass to the end of the last.
    pub took: Duration,
    /// The longest time for which other lock operations of the node were kept waiting at a
    /// stretch; none if the kernel showed the locks page by page.
    pub longest_run: Option<Duration>,
}

impl Snapshot {
    /// Whether the two walks of the last pass agreed on every file, and every lock has a
    /// host.
    pub fn is_exact(&self) -> bool {
        self.unsettled.is_empty() && self.orphans == 0
    }
}

/// The snapshot's programs in the kernel, and the maps they write to.
pub struct Snapshots {
    programs: Programs,
    pub(super) records: RingBuf<MapData>,
    control: Array<MapData, Control>,
    /// Addresses of the hosts that are wanted.
    hosts: Array<MapData, [u64; HOSTS_PER_RUN]>,
    pub(super) text: Vec<u8>,
    /// The kernel's lists of locks are not at the expected address.
    pub(super) lists_unknown: bool,
    /// The longest time for which a run blocked the kernel's lists of locks; none if they are read page
    /// by page.
    longest_run: Option<Duration>,
    /// NFSv4's part.
    pub(super) states: Ready,
}

impl Snapshots {
    /// Loads and attaches what a snapshot needs.
    ///
    /// # Errors
    /// If the kernel refuses a program, or lacks a function that is probed.
    pub fn attach(mut programs: Programs) -> Result<Self, ObserveError> {
        for program in [BEGIN, WALK, READ_HOSTS] {
            programs.load_runnable(program)?;
        }
        for probe in PROBES {
            programs.attach(probe)?;
        }
        Ok(Snapshots {
            records: programs.map("RECORDS")?,
            control: programs.map("CONTROL")?,
            hosts: programs.map("HOSTS")?,
            programs,
            // seq_file hands out a page at a time, and more only for a record
            // larger than that.
            text: vec![0; 1 << 17],
            lists_unknown: false,
            longest_run: None,
            states: Ready::default(),
        })
    }

    /// The programs, to attach more of them.
    pub fn programs(&mut self) -> &mut Programs {
        &mut self.programs
    }

    pub(super) fn layout(&self) -> &Layout {
        &self.programs.layout
    }

    /// Takes snapshots until one is exact or `max_wait` runs out; then the last
    /// one is returned, with the files that kept changing. With `only`, exact
    /// means that VIP's locks: what others do meanwhile does not matter.
    ///
    /// # Errors
    /// If the kernel's lists cannot be read, or records were lost.
    pub fn take(
        &mut self,
        only: Option<IpAddr>,
        max_wait: Duration,
    ) -> Result<Snapshot, ObserveError> {
        let began = Instant::now();
        self.longest_run = None;
        let mut passes = 0;
        loop {
            passes += 1;
            let Assembled {
                table,
                unsettled,
                orphans,
            } = assemble(self.pass(only)?, only);
            let settled = unsettled.is_empty() && orphans == 0;
            // An interrupted command does not wait until the locks stop changing.
            let is_over = began.elapsed() >= max_wait || interrupt::came().is_some();
            if settled || is_over {
                return Ok(Snapshot {
                    table,
                    unsettled,
                    orphans,
                    passes,
                    took: began.elapsed(),
                    longest_run: self.longest_run,
                });
            }
            debug!(
                passes,
                unsettled = unsettled.len(),
                orphans,
                "locks changed while read"
            );
        }
    }

    /// Reads the kernel's lists once.
    fn pass(&mut self, only: Option<IpAddr>) -> Result<Records, ObserveError> {
        let mut records = Records::default();
        self.programs.run(BEGIN, &[])?;
        let walked = self.read_list(&mut records.locks)?;
        self.longest_run = self.longest_run.max(walked.longest);
        self.walk_files(only, &mut records)?;
        records.hosts = self.read_hosts(&records.host_addresses())?;
        let Control { lost, .. } = self.control()?;
        if lost > 0 {
            return Err(ObserveError::Lost { lost });
        }
        Ok(records)
    }

    /// Walks lockd's file table. A bucket that changes is walked again.
    fn walk_files(&mut self, only: Option<IpAddr>, into: &mut Records) -> Result<(), ObserveError> {
        let Addr(vip) = only.map(Addr::from).unwrap_or_default();
        let half = |bytes: &[u8]| u64::from_ne_bytes(bytes.try_into().expect("eight bytes"));
        let mut steps = WALK_STEPS;
        let mut reached = (0, 0);
        let began = Instant::now();
        loop {
            let args = [
                steps,
                only.is_some().into(),
                half(&vip[..8]),
                half(&vip[8..]),
            ];
            self.programs.run(WALK, &args)?;
            while let Some(item) = self.records.next() {
                if let Some(file) = record(&item, kind::FILE) {
                    into.files.push(file);
                } else if let Some(waiter) = record(&item, kind::WAITER) {
                    into.waiters.push(waiter);
                } else if let Some(share) = record(&item, kind::SHARE) {
                    into.shares.push(share);
                }
            }
            let Control {
                bucket,
                emitted,
                walk,
                ..
            } = self.control()?;
            match walk {
                walk::DONE => return Ok(()),
                walk::PAUSED if reached != (bucket, emitted) => reached = (bucket, emitted),
                // A file with more locks than a run has steps.
                walk::PAUSED if steps < MAX_WALK_STEPS => steps *= 2,
                walk::PAUSED => return Err(ObserveError::TooMany { bucket }),
                torn => {
                    if began.elapsed() > TABLE_TIMEOUT {
                        return Err(ObserveError::Torn { bucket, at: torn });
                    }
                    debug!(bucket, torn, "lockd's file table changed while walked");
                    into.forget_bucket(bucket as u32);
                    self.update(|control| control.emitted = 0)?;
                }
            }
        }
    }

    fn read_hosts(&mut self, addresses: &[u64]) -> Result<HashMap<u64, HostRecord>, ObserveError> {
        let mut hosts = HashMap::with_capacity(addresses.len());
        for some in addresses.chunks(HOSTS_PER_RUN) {
            let mut wanted = [0; HOSTS_PER_RUN];
            wanted[..some.len()].copy_from_slice(some);
            (self.hosts.set(0, wanted, 0)).map_err(map_error("HOSTS"))?;
            self.programs.run(READ_HOSTS, &[some.len() as u64])?;
            while let Some(item) = self.records.next() {
                if let Some(host) = record::<HostRecord>(&item, kind::HOST) {
                    hosts.insert(host.host, host);
                }
            }
        }
        Ok(hosts)
    }

    pub(super) fn control(&self) -> Result<Control, ObserveError> {
        self.control.get(&0, 0).map_err(map_error("CONTROL"))
    }

    pub(super) fn update(&mut self, change: impl FnOnce(&mut Control)) -> Result<(), ObserveError> {
        let mut control = self.control()?;
        change(&mut control);
        (self.control.set(0, control, 0)).map_err(map_error("CONTROL"))
    }
}

/// The record in a ring-buffer item, if it is of this kind.
pub(super) fn record<R: Pod>(item: &[u8], kind: u32) -> Option<R> {
    let tag = u32::from_ne_bytes(item.first_chunk().copied()?);
    if tag != kind || item.len() < size_of::<R>() {
        return None;
    }
    // SAFETY: `R` is plain old data and the item is long enough; the ring aligns
    // to 8, but the read does not depend on it.
    Some(unsafe { std::ptr::read_unaligned(item.as_ptr().cast()) })
}
