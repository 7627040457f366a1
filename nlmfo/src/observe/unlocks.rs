//! What NFSv3 clients gave up since a moment, by the UNLOCK calls that lockd was asked for. In
//! grace lockd refuses them, and its tables do not show that a lock will never be reclaimed.

use std::net::IpAddr;

use aya::maps::{HashMap, MapData};
use nlmfo_common::unlock::Unlock;

use super::programs::{ObserveError, Probe, Programs, map_error};
use super::table::Range;

pub(super) const PROBES: &[Probe] = &[Probe {
    program: "unlock_asked",
    function: "nlm4svc_proc_unlock",
}];

const MAP: &str = "UNLOCKS";

/// One UNLOCK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlocked {
    pub vip: IpAddr,
    pub client: IpAddr,
    pub svid: u32,
    /// The NFS file handle.
    pub fh: Vec<u8>,
    pub range: Range,
}

/// The probe in the kernel, and its map.
pub struct Unlocks(HashMap<MapData, Unlock, u64>);

impl Unlocks {
    /// Attaches the probe; it stays until `programs` is dropped. None if it is not known where
    /// this kernel has the arguments of the call.
    pub fn attach(programs: &mut Programs) -> Result<Option<Self>, ObserveError> {
        if programs.layout.unlocks.rqst_argp == 0 {
            return Ok(None);
        }
        for probe in PROBES {
            programs.attach(probe)?;
        }
        Ok(Some(Unlocks(programs.map(MAP)?)))
    }

    /// Those since the probe was attached.
    pub fn read(&self) -> Result<Vec<Unlocked>, ObserveError> {
        let keys = self.0.keys().collect::<Result<Vec<_>, _>>();
        Ok((keys.map_err(map_error(MAP))?.iter())
            .map(Unlocked::from)
            .collect())
    }
}

impl From<&Unlock> for Unlocked {
    fn from(raw: &Unlock) -> Self {
        let fh_size = (raw.fh_size as usize).min(raw.fh.len());
        Unlocked {
            vip: raw.vip.ip(),
            client: raw.client.ip(),
            svid: raw.svid,
            fh: raw.fh[..fh_size].to_vec(),
            range: Range::of_call(raw.start, raw.len),
        }
    }
}
