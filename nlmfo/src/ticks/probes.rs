//! The probes on lockd, attached again when lockd was reloaded.

use std::time::{Duration, Instant};

use crate::causes::chain;
use crate::kernel;
use crate::observe::counters::nfs4::{CounterProbes4, PerVip4};
use crate::observe::counters::{CounterProbes, PerVip};
use crate::observe::error::ObserveError;
use crate::observe::programs::Programs;
use crate::observe::snapshot::{Snapshot, Snapshots};
use crate::observe::states::take::{StateSnapshot, StatesError};
use crate::ticks::pace::{next_tick, thread_time};

/// The probes, if lockd is loaded.
#[derive(Default)]
pub struct Probes {
    attached: Option<Attached>,
    /// The counters at the last reading, including those of earlier probes.
    counted: PerVip,
    /// The counters of earlier probes.
    carried: PerVip,
    /// The same for NFSv4.
    counted4: PerVip4,
    carried4: PerVip4,
    /// After a failure, the next attempt is not before this moment.
    retry_at: Option<Instant>,
    failure: Option<String>,
}

struct Attached {
    snapshots: Snapshots,
    counters: CounterProbes,
    /// None if nfsd is not in the kernel.
    counters4: Option<CounterProbes4>,
    /// [`kernel::lockd::incarnation`], and nfsd's.
    incarnation: (u64, Option<u64>),
}

impl Probes {
    /// Attaches them to the lockd with this number, unless they are attached. Without a lockd, they are
    /// dropped: their functions are gone. True if anything was attached.
    pub fn follow(&mut self, incarnation: Option<u64>) -> Result<bool, ObserveError> {
        let attached = self.attached.as_ref().map(|attached| attached.incarnation);
        let incarnation = incarnation.map(|lockd| (lockd, kernel::nfsd::incarnation()));
        if attached == incarnation {
            return Ok(false);
        }
        self.attached = None;
        self.carried = self.counted.clone();
        self.carried4 = self.counted4.clone();
        let Some(incarnation) = incarnation else {
            self.retry_at = None;
            return Ok(false);
        };
        let layout = kernel::layout::load().map_err(ObserveError::from)?;
        let mut snapshots = Snapshots::attach(Programs::load(&layout)?)?;
        let counters = CounterProbes::attach(snapshots.programs())?;
        let counters4 = CounterProbes4::attach(snapshots.programs())?;
        self.attached = Some(Attached {
            snapshots,
            counters,
            counters4,
            incarnation,
        });
        Ok(true)
    }

    /// [`Probes::follow`], which is not retried too often after a failure. Returns the failure as text.
    pub fn try_follow(
        &mut self,
        incarnation: Option<u64>,
        interval: Duration,
    ) -> Result<bool, String> {
        if self.retry_at.is_some_and(|at| Instant::now() < at) {
            return Err(self.failure.clone().unwrap_or_default());
        }
        let began = thread_time();
        let outcome = self.follow(incarnation).map_err(|error| chain(&error));
        let cost = thread_time() - began;
        let failed = outcome.is_err();
        self.retry_at = failed.then(|| Instant::now() + next_tick(cost, interval));
        self.failure = outcome.as_ref().err().cloned();
        outcome
    }

    /// Reads lockd's lists once: the screen shows if locks changed in the meantime.
    pub fn look(&mut self) -> Option<Result<Snapshot, ObserveError>> {
        let attached = self.attached.as_mut()?;
        Some(attached.snapshots.take(None, Duration::ZERO))
    }

    /// Reads what NFSv4 clients hold once.
    pub fn states(&mut self, netns: u32) -> Option<Result<StateSnapshot, StatesError>> {
        let attached = self.attached.as_mut()?;
        Some(attached.snapshots.take_states(netns, None, Duration::ZERO))
    }

    /// What was counted since the first probes, as of now or, with an error, of the last
    /// reading.
    pub fn counters(&mut self) -> (&PerVip, Option<ObserveError>) {
        let mut trouble = None;
        if let Some(attached) = &self.attached {
            match attached.counters.read() {
                Ok(mut counters) => {
                    for (vip, earlier) in &self.carried {
                        *counters.entry(*vip).or_default() += *earlier;
                    }
                    self.counted = counters;
                }
                Err(error) => trouble = Some(error),
            }
        }
        (&self.counted, trouble)
    }

    /// [`Probes::counters`] for NFSv4; none where nfsd's calls are not counted.
    pub fn counters4(&mut self) -> (Option<&PerVip4>, Option<ObserveError>) {
        let attached = self.attached.as_ref();
        let Some(probes) = attached.and_then(|attached| attached.counters4.as_ref()) else {
            return (None, None);
        };
        let mut trouble = None;
        match probes.read() {
            Ok(mut counters) => {
                for (vip, earlier) in &self.carried4 {
                    *counters.entry(*vip).or_default() += *earlier;
                }
                self.counted4 = counters;
            }
            Err(error) => trouble = Some(error),
        }
        (Some(&self.counted4), trouble)
    }
}
