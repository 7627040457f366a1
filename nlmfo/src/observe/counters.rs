//! What lockd did per VIP since the counters were attached.

pub mod nfs4;

use std::collections::BTreeMap;
use std::net::IpAddr;

use aya::maps::{Array, MapData, PerCpuHashMap};
use nlmfo_common::Addr;
pub use nlmfo_common::counters::{Counters, Released};

use super::error::ObserveError;
use super::programs::{Probe, Programs};

const fn probe(program: &'static str, function: &'static str) -> Probe {
    Probe { program, function }
}

pub(super) const PROBES: &[Probe] = &[
    probe("lock_enter", "nlmsvc_lock"),
    probe("lock_return", "nlmsvc_lock"),
    probe("unlock", "nlmsvc_unlock"),
    probe("cancel", "nlmsvc_cancel_blocked"),
    probe("test", "nlmsvc_testlock"),
    probe("grant_told", "nlm_async_call"),
    probe("unlock_ip_enter", "nlmsvc_unlock_all_by_ip"),
    probe("unlock_ip_return", "nlmsvc_unlock_all_by_ip"),
    probe("unlock_sb_enter", "nlmsvc_unlock_all_by_sb"),
    probe("unlock_sb_return", "nlmsvc_unlock_all_by_sb"),
    probe("reboot_enter", "nlm_host_rebooted"),
    probe("reboot_return", "nlm_host_rebooted"),
    probe("free_all_enter", "nlmsvc_free_host_resources"),
    probe("free_all_return", "nlmsvc_free_host_resources"),
    probe("shutdown_enter", "nlmsvc_invalidate_all"),
    probe("shutdown_return", "nlmsvc_invalidate_all"),
    probe("hosts_down_enter", "nlm_shutdown_hosts_net"),
    probe("hosts_down_return", "nlm_shutdown_hosts_net"),
    probe("released", "nlm_unlock_files"),
];

/// Counters of every VIP that lockd was called through since they were attached.
pub type PerVip = BTreeMap<IpAddr, Counters>;

/// The counters' probes in the kernel, and their map.
pub struct CounterProbes {
    map: PerCpuHashMap<MapData, Addr, Counters>,
    uncounted: Array<MapData, u64>,
}

impl CounterProbes {
    /// Attaches the probes; they stay until `programs` is dropped.
    ///
    /// # Errors
    /// If the kernel refuses a program, or lacks a function that is probed.
    pub fn attach(programs: &mut Programs) -> Result<Self, ObserveError> {
        for probe in PROBES {
            programs.attach(probe)?;
        }
        Ok(CounterProbes {
            map: programs.map("COUNTERS")?,
            uncounted: programs.map("UNCOUNTED")?,
        })
    }

    /// Reads every VIP's counters.
    ///
    /// # Errors
    /// If an event was not counted (then they prove nothing), or the maps cannot be read.
    pub fn read(&self) -> Result<PerVip, ObserveError> {
        match self.uncounted.get(&0, 0).map_err(map_error)? {
            0 => {}
            events => return Err(ObserveError::Uncounted { events }),
        }
        let mut counters = PerVip::new();
        for entry in &self.map {
            let (vip, per_cpu) = entry.map_err(map_error)?;
            let sum = counters.entry(vip.ip()).or_default();
            for raw in per_cpu.iter() {
                *sum += *raw;
            }
        }
        Ok(counters)
    }
}

fn map_error(source: aya::maps::MapError) -> ObserveError {
    ObserveError::Map {
        map: "COUNTERS",
        source: Box::new(source),
    }
}
