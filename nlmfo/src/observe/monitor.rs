//! The clients that lockd asks statd to monitor, as they lock, with their VIPs.
//!
//! A client is reported when it locks, and once a minute while it continues (`TELL_AGAIN_NS`). Requests
//! of clients that are not monitored (NM_LOCK, SHARE) are not seen.

use aya::maps::{Array, MapData, RingBuf};
use nlmfo_common::record::{HostRecord, kind};
use tokio::io::unix::AsyncFd;

use super::assemble::host_info;
use super::error::ObserveError;
use super::programs::{Probe, Programs};
use super::snapshot::record;
use super::table::HostInfo;

pub(super) const PROBES: &[Probe] = &[Probe {
    program: "monitor",
    function: "nsm_monitor",
}];

/// The probe in the kernel, and the clients that it reports.
pub struct Monitored {
    ring: AsyncFd<RingBuf<MapData>>,
    dropped: Array<MapData, u64>,
}

impl Monitored {
    /// Attaches the probe; it stays until `programs` is dropped. To be called within a
    /// tokio runtime.
    pub fn attach(programs: &mut Programs) -> Result<Self, ObserveError> {
        for probe in PROBES {
            programs.attach(probe)?;
        }
        let ring = programs.ebpf.take_map("MONITORED");
        let dropped = programs.ebpf.take_map("UNTOLD");
        let ring = RingBuf::try_from(ring.ok_or(ObserveError::Foreign("MONITORED"))?)
            .map_err(|source| map_error("MONITORED", source))?;
        // SAFETY: the ring buffer owns its map's file descriptor, which stays the same for
        // as long as it lives.
        let ring =
            unsafe { AsyncFd::register(ring) }.map_err(|error| ObserveError::Poll(error.into()))?;
        Ok(Monitored {
            ring,
            dropped: Array::try_from(dropped.ok_or(ObserveError::Foreign("UNTOLD"))?)
                .map_err(|source| map_error("UNTOLD", source))?,
        })
    }

    /// Waits for reported hosts, and returns all there are. Dropping the future
    /// loses none.
    pub async fn next(&mut self) -> Result<Vec<HostInfo>, ObserveError> {
        let mut ready = self.ring.readable_mut().await.map_err(ObserveError::Poll)?;
        let ring = ready.get_inner_mut();
        let mut hosts = Vec::new();
        while let Some(item) = ring.next() {
            hosts.extend(record::<HostRecord>(&item, kind::HOST).and_then(|host| host_info(&host)));
        }
        ready.clear_ready();
        Ok(hosts)
    }

    /// How many hosts could not be reported since the probe was attached: the reader was
    /// too slow, or the kernel's memory could not be read.
    pub fn dropped(&self) -> Result<u64, ObserveError> {
        (self.dropped.get(&0, 0)).map_err(|source| map_error("UNTOLD", source))
    }
}

fn map_error(map: &'static str, source: aya::maps::MapError) -> ObserveError {
    ObserveError::Map {
        map,
        source: Box::new(source),
    }
}
