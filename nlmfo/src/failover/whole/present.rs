//! What is held now by NFSv3 and NFSv4, in this network namespace.

use std::time::Duration;

use super::coverage::Present;
use crate::causes::chain;
use crate::failover::watch::Watch;
use crate::observe::error::ObserveError;
use crate::observe::states::{Counts4, State, StateTable};
use crate::observe::table::LockTable;
use crate::observe::unlocks::GivenUp;

/// Everything that is held through any address.
#[derive(Debug)]
pub struct Held {
    pub locks: LockTable,
    /// An error says why NFSv4 state could not be read.
    pub states: Result<StateTable, String>,
    /// What clients gave up, if that is followed.
    pub given_up: GivenUp,
    /// It is certain that nfsd has refused no reclaim.
    pub refused_no_reclaim4: bool,
    /// Whether `locks` is exact, and `states` could be read. NFSv4 state of a busy server changes all
    /// the time, even by requests that are refused.
    pub exact: bool,
}

impl Held {
    /// Reads it. `max_wait` is how long to read NFSv4 state again while it changes.
    pub fn read(watch: &mut Watch, max_wait: Duration) -> Result<Self, ObserveError> {
        let netns = watch.netns();
        let snapshot = watch.snapshot(None)?;
        let states = watch.all_states(max_wait);
        Ok(Held {
            exact: snapshot.is_exact() && states.is_ok(),
            locks: (snapshot.table).part(|host| host.netns == netns),
            states: match states {
                Ok(states) => Ok(states.table),
                Err(error) => Err(chain(&error)),
            },
            given_up: watch.given_up()?,
            refused_no_reclaim4: watch.refused_no_reclaim4(),
        })
    }

    pub fn present(&self) -> Present<'_> {
        Present {
            locks: &self.locks,
            states: self.states.as_ref().ok(),
            given_up: &self.given_up,
            refused_no_reclaim4: self.refused_no_reclaim4,
        }
    }

    /// How much is held. If two counts in a row are the same, nothing was reclaimed in between.
    pub fn count(&self) -> (usize, Counts4) {
        let states = self.states.as_ref().map(StateTable::counts);
        let nfs3 = self.locks.locks.len() + self.locks.shares.len();
        (nfs3, states.unwrap_or_default())
    }

    /// What is left after a stop, as text; empty if nothing is. Blocked requests count too.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let (locks, waiters) = (self.locks.locks.len(), self.locks.waiters.len());
        if locks + waiters + self.locks.shares.len() > 0 {
            left.push(format!(
                "{locks} NFSv3 locks, {waiters} waiters and {} shares are still there",
                self.locks.shares.len()
            ));
        }
        match &self.states {
            Ok(table) if table.states.iter().any(State::is_held) || !table.clients.is_empty() => {
                left.push(format!("NFSv4 state is still there: {}", table.counts()));
            }
            Ok(_) => {}
            Err(error) => left.push(format!("NFSv4 state could not be read: {error}")),
        }
        left
    }
}
