//! A release that an earlier run has started.

use std::net::IpAddr;

use super::exclusive::Working;
use super::record::Record;
use crate::observe::table::LockTable;

/// VIPs whose record of an earlier run is still valid, since nothing was granted through them
/// after it: that run was interrupted, or this run repeats it.
#[derive(Clone, Debug, Default)]
pub struct Begun {
    /// The fence of the earlier run is up.
    pub fenced: Vec<IpAddr>,
    /// Not an address of this node, so that its clients are elsewhere. If locks are held
    /// through it, a new release starts instead.
    pub absent: Vec<IpAddr>,
}

impl Begun {
    /// Removes VIPs whose record, `earlier`, is older than their current move: the run that started the
    /// move ended before it wrote a record. For VIPs whose move starts now, notes `earlier` as the
    /// record of an earlier move.
    pub fn forget_earlier_moves(
        &mut self,
        vips: &[IpAddr],
        earlier: Option<&Record>,
        working: &Working,
    ) -> anyhow::Result<()> {
        let id = earlier.map(Record::id);
        for &vip in vips {
            if !self.fenced.contains(&vip) && !self.absent.contains(&vip) {
                working.note_earlier(vip, id.as_deref())?;
            } else if let Some(id) = &id
                && working.is_earlier(vip, id)?
            {
                self.fenced.retain(|&fenced| fenced != vip);
                self.absent.retain(|&absent| absent != vip);
            }
        }
        Ok(())
    }

    /// Whether the earlier record of a VIP is valid, given what is held through it now.
    pub(super) fn counts(&self, vip: IpAddr, held: &LockTable) -> bool {
        self.fenced.contains(&vip) || (self.absent.contains(&vip) && held.locks.is_empty())
    }
}
