//! What clients have released since the probes were attached, from the calls that lockd and nfsd
//! received. lockd refuses UNLOCK in grace, and nfsd refuses LOCKU and CLOSE with a stateid from before
//! the restart, so their tables do not show that the lock or open will never be reclaimed.

use std::net::IpAddr;

use aya::Pod;
use aya::maps::{HashMap, MapData};
use nlmfo_common::unlock::{Unlock3, Unlock4};

use super::error::ObserveError;
use super::programs::{Probe, Programs, map_error};
use super::table::Range;

const OF_NFS3: &[Probe] = &[Probe {
    program: "unlock3_asked",
    function: "nlm4svc_proc_unlock",
}];

const OF_NFS4: &[Probe] = &[
    Probe {
        program: "locku_asked",
        function: "nfsd4_locku",
    },
    Probe {
        program: "close_asked",
        function: "nfsd4_close",
    },
];

const MAP3: &str = "UNLOCKS3";
const MAP4: &str = "UNLOCKS4";

pub(super) fn probes() -> impl Iterator<Item = &'static Probe> {
    OF_NFS3.iter().chain(OF_NFS4)
}

/// What clients gave up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GivenUp {
    pub nfs3: Vec<Unlocked3>,
    pub nfs4: Vec<Unlocked4>,
}

/// One UNLOCK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlocked3 {
    pub vip: IpAddr,
    pub client: IpAddr,
    pub svid: u32,
    /// The NFS file handle.
    pub fh: Vec<u8>,
    pub range: Range,
}

/// One LOCKU or CLOSE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlocked4 {
    /// The stateid without its generation.
    pub state: [u8; 12],
    /// None for a CLOSE.
    pub range: Option<Range>,
}

/// A map whose values say nothing.
type Set<K> = HashMap<MapData, K, u8>;

/// The probes in the kernel, and their maps; none if the layout of the calls' arguments is not known
/// for this kernel.
pub struct Unlocks {
    nfs3: Option<Set<Unlock3>>,
    nfs4: Option<Set<Unlock4>>,
}

impl Unlocks {
    /// Attaches the probes; they stay until `programs` is dropped.
    pub fn attach(programs: &mut Programs) -> Result<Self, ObserveError> {
        let layout = programs.layout.unlocks;
        Ok(Unlocks {
            nfs3: match layout.nfs3.rqst_argp {
                0 => None,
                _ => Some(attached(programs, OF_NFS3, MAP3)?),
            },
            nfs4: match layout.nfs4.locku_stateid {
                0 => None,
                _ => Some(attached(programs, OF_NFS4, MAP4)?),
            },
        })
    }

    /// What was given up since they were attached.
    pub fn read(&self) -> Result<GivenUp, ObserveError> {
        Ok(GivenUp {
            nfs3: keys(self.nfs3.as_ref(), MAP3)?,
            nfs4: keys(self.nfs4.as_ref(), MAP4)?,
        })
    }
}

fn attached<K: Pod>(
    programs: &mut Programs,
    probes: &[Probe],
    map: &'static str,
) -> Result<Set<K>, ObserveError> {
    for probe in probes {
        programs.attach(probe)?;
    }
    programs.map(map)
}

fn keys<K: Pod, T: From<K>>(
    map: Option<&Set<K>>,
    name: &'static str,
) -> Result<Vec<T>, ObserveError> {
    let keys = map.into_iter().flat_map(HashMap::keys);
    let keys = keys.map(|key| key.map(T::from));
    keys.collect::<Result<_, _>>().map_err(map_error(name))
}

impl From<Unlock3> for Unlocked3 {
    fn from(raw: Unlock3) -> Self {
        let fh_size = (raw.fh_size as usize).min(raw.fh.len());
        Unlocked3 {
            vip: raw.vip.ip(),
            client: raw.client.ip(),
            svid: raw.svid,
            fh: raw.fh[..fh_size].to_vec(),
            range: Range::of_call(raw.start, raw.len),
        }
    }
}

impl From<Unlock4> for Unlocked4 {
    fn from(raw: Unlock4) -> Self {
        // All ones means up to the end of the file here; no range has no bytes.
        let len = match raw.len {
            u64::MAX => 0,
            len => len,
        };
        Unlocked4 {
            state: raw.state,
            range: (raw.closes == 0).then(|| Range::of_call(raw.start, len)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_has_no_range_and_all_ones_reach_to_the_end() {
        let of = |len, closes| {
            let raw = Unlock4 {
                start: 5,
                len,
                state: [7; 12],
                closes,
            };
            Unlocked4::from(raw).range
        };
        assert_eq!(of(10, 0), Some(Range { start: 5, end: 14 }));
        assert_eq!(of(u64::MAX, 0).unwrap().end, Range::EOF);
        assert_eq!(of(0, 1), None);
    }
}
