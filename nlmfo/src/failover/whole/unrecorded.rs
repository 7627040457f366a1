//! NFSv4 clients that hold state and that nfsdcld has not recorded. nfsd would refuse their reclaims
//! after its next start.
//!
//! nfsd has a client recorded at `RECLAIM_COMPLETE`, and one of 4.0 at `OPEN_CONFIRM` only, which comes
//! with a new open owner (`nfsd4_client_record_create`, fs/nfsd/nfs4state.c, 6.1 to 7.3). A 4.0
//! client that has reclaimed, and goes on with the owners it had, is in no record. At an orderly stop
//! it has held its state without a break, so that no other client can have got anything that conflicts:
//! it may reclaim, and is added. Not earlier: nfsd removes no client that it did not have recorded, and one
//! that lost its state while the server ran must not reclaim after a crash.

use super::Server;
use super::present::Held;
use crate::foreign::Name;
use crate::kernel::nfsdcld::{Records, RecordsError};
use crate::observe::states::{State, StateTable};

/// Such clients, and the records that lack them.
#[derive(Debug, Default)]
pub struct Unrecorded {
    records: Option<Records>,
    names: Vec<Name>,
}

impl Unrecorded {
    /// None if no client holds anything, or the server has no such records.
    ///
    /// # Errors
    /// If nfsdcld's database cannot be used.
    pub fn of(server: &impl Server, held: &Held) -> Result<Self, RecordsError> {
        let holders = held.states.as_ref().map_or_else(|_| Vec::new(), holders);
        let (Some(database), false) = (server.nfs4_records(), holders.is_empty()) else {
            return Ok(Unrecorded::default());
        };
        let records = Records::open(&database)?;
        let mut names = Vec::new();
        for name in holders {
            if !records.has(name)? {
                names.push(name.clone());
            }
        }
        Ok(Unrecorded {
            records: Some(records),
            names,
        })
    }

    /// Those of which only the beginning of the name is known: they cannot be added.
    pub fn cut(&self) -> Vec<Name> {
        let names = self.names.iter();
        names.filter(|name| name.is_cut()).cloned().collect()
    }

    /// Adds the others, and returns them.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn add(&mut self) -> Result<&[Name], RecordsError> {
        self.names.retain(|name| !name.is_cut());
        if let (Some(records), false) = (&mut self.records, self.names.is_empty()) {
            records.add(&self.names)?;
        }
        Ok(&self.names)
    }

    /// Removes those that were added, because the server did not stop.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn take_back(&mut self) -> Result<(), RecordsError> {
        match (&mut self.records, self.names.is_empty()) {
            (Some(records), false) => records.remove(&self.names),
            _ => Ok(()),
        }
    }
}

/// The names of the clients that hold something.
fn holders(states: &StateTable) -> Vec<&Name> {
    let mut holds = vec![false; states.clients.len()];
    for state in states.states.iter().filter(|state| State::is_held(state)) {
        holds[state.client] = true;
    }
    let holders = states.clients.iter().zip(holds).filter(|(_, holds)| *holds);
    holders.map(|(client, _)| &client.name).collect()
}
