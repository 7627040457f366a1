//! The gate's pinned maps, typed.

use std::collections::BTreeSet;

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuHashMap};
use nlmfo_common::Addr;
use nlmfo_common::gate::{Audited, Gate, Gated, Violation, Window};
use nlmfo_common::nlm_call::Fsid;

use super::GraceError;
use super::pins::Pins;

/// Number of words of [`Maps::ports`] for one transport, with one bit for each port.
const PORT_WORDS: u32 = 65536 / 64;

/// See `nlmfo_common::gate` for what they hold.
pub struct Maps {
    pub gate: Array<MapData, Gate>,
    pub windows: HashMap<MapData, Addr, Window>,
    /// The filesystems of the scope; the value has no meaning.
    pub scopes: HashMap<MapData, Fsid, u64>,
    pub ports: Array<MapData, u64>,
    pub muted: Array<MapData, u64>,
    pub gated: PerCpuHashMap<MapData, Addr, Gated>,
    pub audited: HashMap<MapData, Addr, Audited>,
    pub violations: Array<MapData, Violation>,
    pub violation_count: Array<MapData, u64>,
}

impl Maps {
    pub fn open(pins: &Pins) -> Result<Self, GraceError> {
        Ok(Maps {
            gate: open(pins, "GATE")?,
            windows: open(pins, "WINDOWS")?,
            scopes: open(pins, "SCOPES")?,
            ports: open(pins, "PORTS")?,
            muted: open(pins, "MUTED")?,
            gated: open(pins, "GATED")?,
            audited: open(pins, "AUDITED")?,
            violations: open(pins, "VIOLATIONS")?,
            violation_count: open(pins, "VIOLATION_COUNT")?,
        })
    }

    pub fn gate(&self) -> Result<Gate, GraceError> {
        self.gate.get(&0, 0).map_err(GraceError::map("GATE"))
    }

    pub fn set_gate(&mut self, gate: Gate) -> Result<(), GraceError> {
        self.gate.set(0, gate, 0).map_err(GraceError::map("GATE"))
    }

    pub fn set_secret(&mut self, secret: u64) -> Result<(), GraceError> {
        let gate = self.gate()?;
        self.set_gate(Gate { secret, ..gate })
    }

    pub fn window(&self, vip: Addr) -> Result<Option<Window>, GraceError> {
        found(self.windows.get(&vip, 0)).map_err(GraceError::map("WINDOWS"))
    }

    pub fn set_window(&mut self, vip: Addr, window: Window) -> Result<(), GraceError> {
        self.windows
            .insert(vip, window, 0)
            .map_err(GraceError::map("WINDOWS"))
    }

    pub fn forget_window(&mut self, vip: Addr) -> Result<(), GraceError> {
        removed(self.windows.remove(&vip)).map_err(GraceError::map("WINDOWS"))
    }

    /// All VIPs with an entry, open or not.
    pub fn windows(&self) -> Result<Vec<(Addr, Window)>, GraceError> {
        let entries = self.windows.iter().collect::<Result<Vec<_>, _>>();
        entries.map_err(GraceError::map("WINDOWS"))
    }

    /// The sum of all CPUs.
    pub fn gated(&self, vip: Addr) -> Result<Gated, GraceError> {
        let per_cpu = found(self.gated.get(&vip, 0)).map_err(GraceError::map("GATED"))?;
        let mut sum = Gated::default();
        for one in per_cpu.iter().flat_map(|per_cpu| per_cpu.iter()) {
            sum.new += one.new;
            sum.reclaims += one.reclaims;
            sum.repeated += one.repeated;
            sum.left += one.left;
            sum.shares += one.shares;
            sum.dropped += one.dropped;
            sum.closed += one.closed;
            sum.fenced += one.fenced;
            sum.guarded += one.guarded;
        }
        Ok(sum)
    }

    pub fn audited(&self, vip: Addr) -> Result<Audited, GraceError> {
        let audited = found(self.audited.get(&vip, 0)).map_err(GraceError::map("AUDITED"))?;
        Ok(audited.unwrap_or_default())
    }

    /// The addresses with counts.
    pub fn counted(&self) -> Result<BTreeSet<Addr>, GraceError> {
        let gated = self
            .gated
            .keys()
            .map(|key| key.map_err(GraceError::map("GATED")));
        let audited = (self.audited.keys()).map(|key| key.map_err(GraceError::map("AUDITED")));
        gated.chain(audited).collect()
    }

    /// Resets the counts of this VIP.
    pub fn forget_counts(&mut self, vip: Addr) -> Result<(), GraceError> {
        removed(self.gated.remove(&vip)).map_err(GraceError::map("GATED"))?;
        removed(self.audited.remove(&vip)).map_err(GraceError::map("AUDITED"))
    }

    /// The violations that are kept by name, of all VIPs, oldest first.
    pub fn violations(&self) -> Result<Vec<Violation>, GraceError> {
        let map_error = GraceError::map("VIOLATIONS");
        let count = self.violation_count.get(&0, 0).map_err(&map_error)?;
        let kept = count.min(u64::from(self.violations.len())) as u32;
        let all = (0..kept).map(|i| self.violations.get(&i, 0).map_err(&map_error));
        // An entry that is still being written has no kind.
        all.filter(|one| one.as_ref().map_or(true, |violation| violation.kind != 0))
            .collect()
    }

    /// Clears the stored violations.
    pub fn forget_violations(&mut self) -> Result<(), GraceError> {
        let map_error = GraceError::map("VIOLATIONS");
        for i in 0..self.violations.len() {
            let mut violation = self.violations.get(&i, 0).map_err(&map_error)?;
            if violation.kind != 0 {
                violation.kind = 0;
                self.violations.set(i, violation, 0).map_err(&map_error)?;
            }
        }
        self.violation_count.set(0, 0, 0).map_err(&map_error)
    }

    /// Adds a port that lockd listens on.
    pub fn add_port(&mut self, tcp: bool, port: u16) -> Result<(), GraceError> {
        let map_error = GraceError::map("PORTS");
        let (word, bit) = port_bit(tcp, port);
        let before = self.ports.get(&word, 0).map_err(&map_error)?;
        match before | bit {
            same if same == before => Ok(()),
            more => self.ports.set(word, more, 0).map_err(&map_error),
        }
    }

    /// Adds a port that is muted with a VIP.
    pub fn add_muted(&mut self, tcp: bool, port: u16) -> Result<(), GraceError> {
        let map_error = GraceError::map("MUTED");
        let (word, bit) = port_bit(tcp, port);
        let before = self.muted.get(&word, 0).map_err(&map_error)?;
        (self.muted.set(word, before | bit, 0)).map_err(&map_error)
    }

    /// Removes a port that lockd no longer listens on.
    pub fn remove_port(&mut self, tcp: bool, port: u16) -> Result<(), GraceError> {
        let map_error = GraceError::map("PORTS");
        let (word, bit) = port_bit(tcp, port);
        let before = self.ports.get(&word, 0).map_err(&map_error)?;
        (self.ports.set(word, before & !bit, 0)).map_err(&map_error)
    }

    /// The VIPs' filesystems for `--scope filesystem`.
    pub fn add_scope(&mut self, filesystem: Fsid) -> Result<(), GraceError> {
        self.scopes
            .insert(filesystem, 1, 0)
            .map_err(GraceError::map("SCOPES"))
    }

    pub fn scopes(&self) -> Result<Vec<Fsid>, GraceError> {
        let all: Result<Vec<Fsid>, _> = self.scopes.keys().collect();
        all.map_err(GraceError::map("SCOPES"))
    }

    pub fn forget_scopes(&mut self) -> Result<(), GraceError> {
        let map_error = GraceError::map("SCOPES");
        for filesystem in self.scopes()? {
            removed(self.scopes.remove(&filesystem)).map_err(&map_error)?;
        }
        Ok(())
    }
}

/// Which word of the map has a port's bit, and the bit.
fn port_bit(tcp: bool, port: u16) -> (u32, u64) {
    let first = if tcp { 0 } else { PORT_WORDS };
    (first + u32::from(port) / 64, 1 << (port % 64))
}

fn open<M>(pins: &Pins, name: &'static str) -> Result<M, GraceError>
where
    M: TryFrom<Map, Error = MapError>,
{
    let data = MapData::from_pin(pins.map(name)).map_err(GraceError::map(name))?;
    Map::from_map_data(data)
        .and_then(M::try_from)
        .map_err(GraceError::map(name))
}

fn found<T>(got: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match got {
        Err(MapError::KeyNotFound) => Ok(None),
        other => other.map(Some),
    }
}

fn removed(removal: Result<(), MapError>) -> Result<(), MapError> {
    match removal {
        Err(MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        Err(MapError::KeyNotFound) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_has_one_bit_of_its_transport() {
        assert_eq!(port_bit(true, 0), (0, 1));
        assert_eq!(port_bit(true, 4045), (63, 1 << 13));
        assert_eq!(port_bit(false, 4045), (1024 + 63, 1 << 13));
        assert_eq!(port_bit(false, 65535), (2047, 1 << 63));
    }
}
