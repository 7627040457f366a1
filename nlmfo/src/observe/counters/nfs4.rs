//! What nfsd did for NFSv4 clients, per VIP, since the counters were attached.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::maps::{Array, MapData, PerCpuHashMap};
use nlmfo_common::Addr;
pub use nlmfo_common::counters::Counters4;

use crate::observe::error::ObserveError;
use crate::observe::programs::{Probe, Programs, map_error};

const fn probe(program: &'static str, function: &'static str) -> Probe {
    Probe { program, function }
}

/// How many of [`PROBES`], the first ones, see reclaims: those of PUTFH, OPEN and LOCK.
const OF_RECLAIMS: usize = 5;

pub(in crate::observe) const PROBES: &[Probe] = &[
    probe("putfh4_return", "nfsd4_putfh"),
    probe("open4_enter", "nfsd4_open"),
    probe("open4_return", "nfsd4_open"),
    probe("lock4_enter", "nfsd4_lock"),
    probe("lock4_return", "nfsd4_lock"),
    probe("delegation_recalled", "nfsd_break_deleg_cb"),
    probe("client_ended", "expire_client"),
];

/// Counters of every VIP that nfsd was called through since they were attached.
pub type PerVip4 = BTreeMap<IpAddr, Counters4>;

/// The counters' probes in the kernel, and their maps.
pub struct CounterProbes4 {
    map: PerCpuHashMap<MapData, Addr, Counters4>,
    uncounted: Array<MapData, u64>,
    handles_refused: Array<MapData, u64>,
}

impl CounterProbes4 {
    /// Attaches the probes; they stay until `programs` is dropped. None if nfsd is not in the
    /// kernel, or its layout is unknown.
    ///
    /// # Errors
    /// If the kernel refuses a program, or lacks a function that is probed.
    pub fn attach(programs: &mut Programs) -> Result<Option<Self>, ObserveError> {
        // Not PUTFH: reads and writes have it too, so it is probed only while clients reclaim.
        Self::attach_these(programs, &PROBES[1..])
    }

    /// Attaches only the probes of reclaims, for [`CounterProbes4::refused_no_reclaim`].
    ///
    /// # Errors
    /// As [`CounterProbes4::attach`].
    pub(crate) fn attach_reclaims(programs: &mut Programs) -> Result<Option<Self>, ObserveError> {
        Self::attach_these(programs, &PROBES[..OF_RECLAIMS])
    }

    fn attach_these(
        programs: &mut Programs,
        probes: &[Probe],
    ) -> Result<Option<Self>, ObserveError> {
        if programs.layout.states.posix_ops == 0 {
            return Ok(None);
        }
        for probe in probes {
            programs.attach(probe)?;
        }
        Ok(Some(CounterProbes4 {
            map: programs.map("COUNTERS4")?,
            uncounted: programs.map("UNCOUNTED4")?,
            handles_refused: programs.map("HANDLES_REFUSED4")?,
        }))
    }

    /// Whether it is certain that nfsd has refused no reclaim since
    /// [`CounterProbes4::attach_reclaims`], nor the handle of a file.
    pub fn refused_no_reclaim(&self) -> bool {
        let refused_none = |all: PerVip4| all.values().all(|one| one.reclaims_refused == 0);
        let handles = self.handles_refused.get(&0, 0);
        handles.is_ok_and(|refused| refused == 0) && self.read().is_ok_and(refused_none)
    }

    /// Reads every VIP's counters.
    ///
    /// # Errors
    /// If an event was not counted, or the maps cannot be read.
    pub fn read(&self) -> Result<PerVip4, ObserveError> {
        let uncounted = self.uncounted.get(&0, 0);
        match uncounted.map_err(map_error("UNCOUNTED4"))? {
            0 => {}
            events => return Err(ObserveError::Uncounted4 { events }),
        }
        let mut counters = PerVip4::new();
        for entry in &self.map {
            let (vip, per_cpu) = entry.map_err(map_error("COUNTERS4"))?;
            let sum = counters.entry(vip.ip()).or_default();
            for raw in per_cpu.iter() {
                *sum += *raw;
            }
        }
        Ok(counters)
    }
}
