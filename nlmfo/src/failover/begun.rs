//! A release that an earlier run has begun.

use std::net::IpAddr;

use super::exclusive::Working;
use super::record::Record;
use crate::observe::table::LockTable;

/// VIPs whose record of an earlier run still counts, as nothing was granted through them
/// since: that run was interrupted, or this is a repetition.
#[derive(Clone, Debug, Default)]
pub struct Begun {
    /// Its fence stands.
    pub fenced: Vec<IpAddr>,
    /// No address of this node, whose clients are elsewhere: unless locks are held through
    /// them, with which a new release begins.
    pub absent: Vec<IpAddr>,
}

impl Begun {
    /// Leaves out VIPs whose record, `earlier`, was there before their move began: its run
    /// ended before it had written one. Notes it for VIPs whose move begins now.
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

    /// Whether what was recorded of a VIP counts, through which `held` is held.
    pub(super) fn counts(&self, vip: IpAddr, held: &LockTable) -> bool {
        self.fenced.contains(&vip) || (self.absent.contains(&vip) && held.locks.is_empty())
    }
}
