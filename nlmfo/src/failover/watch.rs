//! The probes that watch a failover, and looks through them at one VIP.

use std::net::IpAddr;
use std::time::Duration;

use super::evidence::{Counts, Look};
use crate::observe::counters::{CounterProbes, PerVip};
use crate::observe::host::Host;
use crate::observe::programs::ObserveError;
use crate::observe::snapshot::{Snapshot, Snapshots};
use crate::observe::states::take::{StateSnapshot, StatesError};
use crate::observe::table::LockTable;

/// How long one look may take before it counts as not exact.
const PATIENCE: Duration = Duration::from_secs(5);

/// Snapshots and counters, seen from one network namespace.
pub struct Watch {
    snapshots: Snapshots,
    counters: CounterProbes,
    netns: u32,
}

/// A look at one VIP.
pub struct Seen {
    /// Everything that lockd holds.
    pub snapshot: Snapshot,
    /// The VIP's part of it, in our namespace.
    pub ours: LockTable,
}

impl Watch {
    /// Attaches the counters too. `netns` is the number of our namespace.
    pub fn attach(mut snapshots: Snapshots, netns: u32) -> Result<Self, ObserveError> {
        let counters = CounterProbes::attach(snapshots.programs())?;
        Ok(Watch {
            snapshots,
            counters,
            netns,
        })
    }

    pub fn netns(&self) -> u32 {
        self.netns
    }

    /// Whether the host is of our namespace.
    pub fn is_ours(&self, host: &Host) -> bool {
        host.netns == self.netns
    }

    /// A snapshot in which the VIP's locks hold still.
    pub fn look(&mut self, vip: IpAddr) -> Result<Seen, ObserveError> {
        let snapshot = self.snapshots.take(Some(vip), PATIENCE)?;
        let ours = (snapshot.table).part(|host| host.vip == vip && host.netns == self.netns);
        Ok(Seen { snapshot, ours })
    }

    /// What NFSv4 clients hold through the VIP, or may.
    pub fn states(&mut self, vip: IpAddr) -> Result<StateSnapshot, StatesError> {
        (self.snapshots).take_states(self.netns, Some(vip), PATIENCE)
    }

    pub fn counters(&self) -> Result<PerVip, ObserveError> {
        self.counters.read()
    }
}

impl Seen {
    pub fn counts(&self) -> Counts {
        Counts::of(&self.ours)
    }

    pub fn as_look(&self) -> Look {
        Look {
            left: self.counts(),
            exact: self.snapshot.is_exact(),
        }
    }
}
