//! What lockd did per VIP since the counters were attached.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::{AddAssign, Sub};

use aya::maps::{Array, MapData, PerCpuHashMap};
use nlmfo_common::Addr;
use nlmfo_common::record::{LATENCY_BUCKETS, VipCounters, cause};
use serde::{Deserialize, Deserializer, Serialize};

use super::programs::{ObserveError, Probe, Programs};

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

/// Owners whose locks on one file lockd dropped by itself, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Released {
    pub unlock_ip: u64,
    pub unlock_filesystem: u64,
    pub client_reboot: u64,
    pub free_all: u64,
    pub shutdown: u64,
    pub other: u64,
}

impl Released {
    pub fn total(&self) -> u64 {
        self.unlock_ip
            + self.unlock_filesystem
            + self.client_reboot
            + self.free_all
            + self.shutdown
            + self.other
    }
}

/// One VIP's counters, added up over the CPUs. Calls, not locks: POSIX locks of
/// one owner merge and split, so how many are held only a snapshot can tell.
///
/// No counter sees calls that lockd answers before its lock path: a
/// stale or unknown file handle, a host or file for which there is no memory, and,
/// while in grace, UNLOCK and CANCEL (`nlm4svc_retrieve_args` and its callers,
/// fs/lockd/svc4proc.c, 6.1 and 6.12). None of these changes what is held. SHARE and
/// UNSHARE have no counter at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// LOCK calls granted at once, reclaims apart.
    pub granted: u64,
    /// Blocked requests that were granted later.
    pub granted_later: u64,
    pub reclaimed: u64,
    pub denied: u64,
    pub denied_grace: u64,
    pub blocked: u64,
    pub cancelled: u64,
    pub unlocked: u64,
    pub tested: u64,
    pub released: Released,
    /// LOCK calls by time: bucket `i` holds those of 2^i to 2^(i+1) - 1 ns.
    #[serde(serialize_with = "<[u64]>::serialize", deserialize_with = "histogram")]
    pub latency_ns_log2: [u64; LATENCY_BUCKETS],
}

/// serde knows arrays of up to 32.
fn histogram<'de, D: Deserializer<'de>>(from: D) -> Result<[u64; LATENCY_BUCKETS], D::Error> {
    let buckets = Vec::deserialize(from)?;
    let count = buckets.len();
    (buckets.try_into())
        .map_err(|_| serde::de::Error::invalid_length(count, &"one number for each bucket"))
}

impl Default for Counters {
    fn default() -> Self {
        Counters {
            granted: 0,
            granted_later: 0,
            reclaimed: 0,
            denied: 0,
            denied_grace: 0,
            blocked: 0,
            cancelled: 0,
            unlocked: 0,
            tested: 0,
            released: Released::default(),
            latency_ns_log2: [0; LATENCY_BUCKETS],
        }
    }
}

impl Counters {
    /// New locks for clients: granted at once, later, or reclaimed.
    pub fn grants(&self) -> u64 {
        self.granted + self.granted_later + self.reclaimed
    }

    /// Calls of the VIP's own clients that change locks or waiters.
    pub fn client_changes(&self) -> u64 {
        self.grants() + self.blocked + self.cancelled + self.unlocked
    }

    /// Applies `op` to each pair of numbers.
    fn zip(self, other: Self, op: impl Fn(u64, u64) -> u64) -> Self {
        Counters {
            granted: op(self.granted, other.granted),
            granted_later: op(self.granted_later, other.granted_later),
            reclaimed: op(self.reclaimed, other.reclaimed),
            denied: op(self.denied, other.denied),
            denied_grace: op(self.denied_grace, other.denied_grace),
            blocked: op(self.blocked, other.blocked),
            cancelled: op(self.cancelled, other.cancelled),
            unlocked: op(self.unlocked, other.unlocked),
            tested: op(self.tested, other.tested),
            released: Released {
                unlock_ip: op(self.released.unlock_ip, other.released.unlock_ip),
                unlock_filesystem: op(
                    self.released.unlock_filesystem,
                    other.released.unlock_filesystem,
                ),
                client_reboot: op(self.released.client_reboot, other.released.client_reboot),
                free_all: op(self.released.free_all, other.released.free_all),
                shutdown: op(self.released.shutdown, other.released.shutdown),
                other: op(self.released.other, other.released.other),
            },
            latency_ns_log2: std::array::from_fn(|i| {
                op(self.latency_ns_log2[i], other.latency_ns_log2[i])
            }),
        }
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        *self = self.zip(other, u64::wrapping_add);
    }
}

/// The difference of two readings; the later one is on the left.
impl Sub for Counters {
    type Output = Self;

    fn sub(self, earlier: Self) -> Self {
        self.zip(earlier, u64::saturating_sub)
    }
}

impl From<&VipCounters> for Counters {
    fn from(raw: &VipCounters) -> Self {
        Counters {
            granted: raw.granted,
            granted_later: raw.granted_later,
            reclaimed: raw.reclaimed,
            denied: raw.denied,
            denied_grace: raw.denied_grace,
            blocked: raw.blocked,
            cancelled: raw.cancelled,
            unlocked: raw.unlocked,
            tested: raw.tested,
            released: Released {
                unlock_ip: raw.released[cause::UNLOCK_IP],
                unlock_filesystem: raw.released[cause::UNLOCK_FILESYSTEM],
                client_reboot: raw.released[cause::CLIENT_REBOOT],
                free_all: raw.released[cause::FREE_ALL],
                shutdown: raw.released[cause::SHUTDOWN],
                other: raw.released[cause::OTHER],
            },
            latency_ns_log2: raw.latency,
        }
    }
}

/// Counters of every VIP that lockd was called through since they were attached.
pub type PerVip = BTreeMap<IpAddr, Counters>;

/// The counters' probes in the kernel, and their map.
pub struct CounterProbes {
    map: PerCpuHashMap<MapData, Addr, VipCounters>,
    uncounted: Array<MapData, u64>,
}

impl CounterProbes {
    /// Attaches the probes; they stay until `programs` is dropped.
    pub fn attach(programs: &mut Programs) -> Result<Self, ObserveError> {
        for probe in PROBES {
            programs.attach(probe)?;
        }
        let map = programs.ebpf.take_map("COUNTERS");
        let uncounted = programs.ebpf.take_map("UNCOUNTED");
        Ok(CounterProbes {
            map: PerCpuHashMap::try_from(map.ok_or(ObserveError::Foreign("COUNTERS"))?)
                .map_err(map_error)?,
            uncounted: Array::try_from(uncounted.ok_or(ObserveError::Foreign("UNCOUNTED"))?)
                .map_err(map_error)?,
        })
    }

    /// Reads every VIP's counters. An error if an event was not counted: then they prove nothing.
    pub fn read(&self) -> Result<PerVip, ObserveError> {
        match self.uncounted.get(&0, 0).map_err(map_error)? {
            0 => {}
            events => return Err(ObserveError::Uncounted { events }),
        }
        let mut counters = PerVip::new();
        for entry in self.map.iter() {
            let (vip, per_cpu) = entry.map_err(map_error)?;
            let sum = counters.entry(vip.ip()).or_default();
            for raw in per_cpu.iter() {
                *sum += raw.into();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpus_add_up_and_the_past_is_taken_away() {
        let mut raw = VipCounters {
            granted: 1,
            granted_later: 2,
            reclaimed: 3,
            denied: 4,
            denied_grace: 5,
            blocked: 6,
            cancelled: 7,
            unlocked: 8,
            tested: 9,
            released: [10, 11, 12, 13, 14, 15],
            latency: [0; LATENCY_BUCKETS],
        };
        raw.latency[20] = 5;
        let mut sum = Counters::from(&raw);
        sum += Counters::from(&raw);
        assert_eq!(sum.released.free_all, 26);
        assert_eq!(sum.released.total(), 150);
        assert_eq!(sum.grants(), 12);
        assert_eq!(sum.client_changes(), 12 + 12 + 14 + 16);
        assert_eq!(sum.latency_ns_log2[20], 10);
        assert_eq!(sum - Counters::from(&raw), Counters::from(&raw));
    }
}
