//! The probes of a failover, and snapshots of one VIP.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::anyhow;
use tracing::warn;

use super::evidence::{Counts, Look};
use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::kernel::layout;
use crate::kernel::lockd::{self, LockdError};
use crate::kernel::preflight::{Capability, Facts};
use crate::observe::counters::nfs4::CounterProbes4;
use crate::observe::counters::{CounterProbes, PerVip};
use crate::observe::error::ObserveError;
use crate::observe::host::Host;
use crate::observe::programs::{Programs, probed_functions};
use crate::observe::snapshot::{Snapshot, Snapshots};
use crate::observe::states::take::{StateSnapshot, StatesError};
use crate::observe::table::LockTable;
use crate::observe::unlocks::{GivenUp, Unlocks};

/// Maximum time for one exact snapshot.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

/// Snapshots and counters of one network namespace.
pub struct Watch {
    snapshots: Snapshots,
    counters: CounterProbes,
    unlocks: Option<Unlocks>,
    counters4: Option<CounterProbes4>,
    netns: u32,
}

/// A snapshot, and one VIP's part of it.
pub struct Seen {
    /// Everything that lockd holds.
    pub snapshot: Snapshot,
    /// The VIP's part, in our namespace.
    pub ours: LockTable,
}

/// Gathers the facts of this node and attaches the probes.
///
/// # Errors
/// With [`Exit::Unsupported`] if this kernel or node lacks something, also lockd.
pub fn observe() -> Result<(Facts, Watch), Failure> {
    let functions: Vec<&str> = probed_functions().collect();
    let facts = Facts::gather(&functions);
    if !lockd::is_loaded() {
        return Err(Failure::new(Exit::Unsupported, LockdError::NotLoaded));
    }
    if let Capability::Missing { reason, remedy } = &facts.ftrace {
        let error = anyhow!("{reason}: {remedy}");
        return Err(Failure::new(Exit::Unsupported, error));
    }
    let layout = match &facts.layout {
        Some(layout) => *layout,
        // Load it again, for the error.
        None => layout::load().map_err(ObserveError::from)?,
    };
    let snapshots = Snapshots::attach(Programs::load(&layout)?)?;
    let watch = Watch::attach(snapshots, facts.netns as u32)?;
    Ok((facts, watch))
}

impl Watch {
    /// Also attaches the counters. `netns` is the inode number of our namespace.
    pub fn attach(mut snapshots: Snapshots, netns: u32) -> Result<Self, ObserveError> {
        let counters = CounterProbes::attach(snapshots.programs())?;
        Ok(Watch {
            snapshots,
            counters,
            unlocks: None,
            counters4: None,
            netns,
        })
    }

    pub fn netns(&self) -> u32 {
        self.netns
    }

    /// Whether the host belongs to our namespace.
    pub fn is_ours(&self, host: &Host) -> bool {
        host.netns == self.netns
    }

    /// Takes a snapshot that is exact for the VIP's locks.
    pub fn look(&mut self, vip: IpAddr) -> Result<Seen, ObserveError> {
        let snapshot = self.snapshots.take(Some(vip), SNAPSHOT_TIMEOUT)?;
        let ours = (snapshot.table).part(|host| host.vip == vip && host.netns == self.netns);
        Ok(Seen { snapshot, ours })
    }

    /// What NFSv4 clients hold, or may hold, through the VIP.
    pub fn states(&mut self, vip: IpAddr) -> Result<StateSnapshot, StatesError> {
        (self.snapshots).take_states(self.netns, Some(vip), SNAPSHOT_TIMEOUT)
    }

    /// Whether this kernel revokes NFSv4 state (`nfs4_stid.sc_status`, from 6.9 on).
    pub fn revokes_states(&self) -> bool {
        self.snapshots.has_stid_status()
    }

    /// Everything that lockd holds. With `only`, the snapshot need only be exact for the locks of that
    /// VIP.
    pub fn snapshot(&mut self, only: Option<IpAddr>) -> Result<Snapshot, ObserveError> {
        self.snapshots.take(only, SNAPSHOT_TIMEOUT)
    }

    /// Everything that NFSv4 clients hold.
    pub fn all_states(&mut self, max_wait: Duration) -> Result<StateSnapshot, StatesError> {
        self.snapshots.take_states(self.netns, None, max_wait)
    }

    /// From now on, notes what clients give up, where the kernel lets us see it.
    pub fn follow_unlocks(&mut self) {
        if self.unlocks.is_none() {
            match Unlocks::attach(self.snapshots.programs()) {
                Ok(unlocks) => self.unlocks = Some(unlocks),
                Err(error) => warn!(error = chain(&error), "cannot see what clients give up"),
            }
        }
    }

    /// What they gave up since [`Watch::follow_unlocks`].
    pub fn given_up(&self) -> Result<GivenUp, ObserveError> {
        (self.unlocks.as_ref()).map_or_else(|| Ok(GivenUp::default()), Unlocks::read)
    }

    /// From now on, notes whether nfsd refuses reclaims.
    pub fn follow_reclaims4(&mut self) {
        match CounterProbes4::attach_reclaims(self.snapshots.programs()) {
            Ok(counters) => self.counters4 = counters,
            Err(error) => warn!(error = chain(&error), "cannot see NFSv4 reclaims"),
        }
    }

    /// Whether it is certain that nfsd has refused none since [`Watch::follow_reclaims4`].
    pub fn refused_no_reclaim4(&self) -> bool {
        (self.counters4.as_ref()).is_some_and(CounterProbes4::refused_no_reclaim)
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
