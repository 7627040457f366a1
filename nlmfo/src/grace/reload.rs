//! lockd was reloaded: the gate's probes are gone with the old module, and the layout has changed. A
//! new gate is loaded and takes over the windows. They hold until their deadline but are not confirmed:
//! locks that lockd granted before the new gate were not seen.

use nlmfo_common::Addr;
use nlmfo_common::gate::{Gate, Window};
use nlmfo_common::nlm_call::Fsid;

use super::GraceError;
use super::maps::Maps;
use super::window::{self, now};

/// The open windows and fences of the old gate.
#[derive(Debug)]
pub(super) struct Carried {
    gate: Gate,
    windows: Vec<(Addr, Window)>,
    scopes: Vec<Fsid>,
}

impl Carried {
    pub fn of(maps: &Maps) -> Result<Self, GraceError> {
        let now = now();
        let windows = maps.windows()?.into_iter();
        Ok(Carried {
            gate: maps.gate()?,
            windows: windows
                .filter_map(|(vip, before)| Some((vip, window::reloaded(before, now)?)))
                .collect(),
            scopes: maps.scopes()?,
        })
    }

    /// Moves them to the new gate, which must be on every device.
    pub fn put(self, maps: &mut Maps) -> Result<(), GraceError> {
        for filesystem in self.scopes {
            maps.add_scope(filesystem)?;
        }
        // The new one's `struct net`, and the old one's times.
        let net = maps.gate()?.net;
        maps.set_gate(Gate { net, ..self.gate })?;
        (self.windows.into_iter()).try_for_each(|(vip, window)| maps.set_window(vip, window))
    }
}
