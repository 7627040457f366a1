//! NFSv4 locks that must not be revoked with their filesystem or export.
//!
//! From 6.9 on `unlock_filesystem` revokes NFSv4 state, from 7.2 on `NFSD_CMD_UNLOCK_EXPORT` too
//! (`nfsd4_revoke_states`, fs/nfsd/nfs4state.c). A revoked lock stays until its client gives it
//! up, with a pointer to the inode of its file, and nothing keeps that inode. When the lease of
//! the client is over, nfsd follows the pointer (`nfs4_lockowner_has_blockers`). Seen after the
//! filesystem was unmounted: 6.12.111 panics in `locks_owner_has_blockers`, 7.3.4 loops there for
//! ever.

use std::path::PathBuf;
use std::time::Duration;

use super::targeted::alive;
use super::targeted::on::On;
use super::watch::Watch;
use crate::causes::chain;
use crate::foreign::Shown;
use crate::observe::states::{Kind, Nfs4Client, Standing, StateTable};
use crate::observe::table::FileInfo;
use crate::release::Suitability;

/// Maximum time to read NFSv4 state again while it changes.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Whether these filesystems may be released as a whole; absent if there are none. The filesystem of a
/// VIP that moves is unmounted soon, so no client has time to give anything up.
pub fn may_release(watch: &mut Watch, filesystems: &[PathBuf]) -> Suitability {
    if filesystems.is_empty() {
        return Suitability::Absent;
    }
    if !watch.revokes_states() {
        return Suitability::Fit;
    }
    let mut why_not = || -> Result<Option<String>, String> {
        let states = watch.all_states(READ_TIMEOUT).map_err(|error| {
            format!("it is not known what NFSv4 clients hold: {}", chain(&error))
        })?;
        for path in filesystems {
            let on = On::filesystem_of(path)
                .map_err(|error| format!("looking at {}: {}", path.shown(), chain(&error)))?;
            if let Some(client) = lockers(&states.table, |file| on.has(file)).first() {
                return Ok(Some(format!(
                    "unlock_filesystem would revoke the NFSv4 locks of {client} on {path}, and this \
                     kernel crashes on a revoked lock whose client is silent once the filesystem is \
                     unmounted: drop the client first (`nlmfo release --client {client}`)",
                    client = client.address,
                    path = path.shown(),
                )));
            }
        }
        Ok(None)
    };
    match why_not() {
        Ok(None) => Suitability::Fit,
        Ok(Some(reason)) | Err(reason) => Suitability::Unfit(reason),
    }
}

/// A line for each silent client with revoked locks, whichever program revoked them: what to do about
/// it. Empty if what clients hold cannot be read.
pub fn left(watch: &mut Watch) -> Vec<String> {
    let (Ok(states), Ok(lease)) = (watch.all_states(READ_TIMEOUT), alive::lease()) else {
        return Vec::new();
    };
    let clients = silent(keepers(&states.table), lease).into_iter();
    let line = |client: &Nfs4Client| {
        format!(
            "NFSv4 locks of {client} were revoked, and it is silent: this kernel crashes once their \
             filesystem is unmounted; `nlmfo release --client {client}` drops them",
            client = client.address
        )
    };
    clients.map(line).collect()
}

/// The clients that have a lock on files that `on` accepts, each once.
pub fn lockers(table: &StateTable, on: impl Fn(&FileInfo) -> bool) -> Vec<&Nfs4Client> {
    locks(table, Standing::Held, on)
}

/// The clients that have a revoked lock and have not given it up.
pub fn keepers(table: &StateTable) -> Vec<&Nfs4Client> {
    locks(table, Standing::AdminRevoked, |_| true)
}

/// A lock stateid without a range also points to the inode.
fn locks(
    table: &StateTable,
    standing: Standing,
    on: impl Fn(&FileInfo) -> bool,
) -> Vec<&Nfs4Client> {
    let mut has = vec![false; table.clients.len()];
    for state in &table.states {
        let is_on = state.file.as_ref().is_none_or(&on);
        has[state.client] |= state.kind == Kind::Lock && state.standing == standing && is_on;
    }
    let clients = table.clients.iter().zip(has);
    clients
        .filter_map(|(client, has)| has.then_some(client))
        .collect()
}

/// Of these clients, those that will not give up what is revoked: their lease is over.
pub fn silent<'a>(
    clients: impl IntoIterator<Item = &'a Nfs4Client>,
    lease: Duration,
) -> Vec<&'a Nfs4Client> {
    let clients = clients.into_iter();
    clients
        .filter(|client| alive::of_lease(client, lease).is_none())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::states::info::Info;
    use crate::observe::states::{State, sample};

    fn file(ino: u64) -> FileInfo {
        FileInfo {
            major: 8,
            minor: 1,
            ino,
            fh: Vec::new(),
        }
    }

    /// One client with an open, and one for each standing with a lock; the files are told by
    /// the client's place.
    fn table(standings: &[Standing]) -> StateTable {
        let mut table = StateTable::default();
        table.clients.push(sample::client(&[]));
        table.states.push(sample::state(0, Kind::Open));
        for (place, &standing) in (1..).zip(standings) {
            table.clients.push(Nfs4Client {
                number: place as u64,
                ..sample::client(&[])
            });
            table.states.push(State {
                standing,
                file: Some(file(place as u64)),
                ..sample::state(place, Kind::Lock)
            });
        }
        table
    }

    fn numbers(clients: &[&Nfs4Client]) -> Vec<u64> {
        clients.iter().map(|client| client.number).collect()
    }

    #[test]
    fn lockers_are_those_on_the_filesystem_or_on_a_file_that_is_not_known() {
        let mut table = table(&[Standing::Held, Standing::Held, Standing::AdminRevoked]);
        assert_eq!(numbers(&lockers(&table, |file| file.ino != 2)), [1]);
        table.states[2].file = None;
        assert_eq!(numbers(&lockers(&table, |file| file.ino != 2)), [1, 2]);
        assert_eq!(numbers(&keepers(&table)), [3]);
    }

    #[test]
    fn a_client_is_silent_when_its_lease_is_over() {
        let renewed = |seconds| Nfs4Client {
            info: Info {
                renewed_seconds: Some(seconds),
                ..Info::default()
            },
            ..sample::client(&[])
        };
        let clients = [renewed(3), renewed(91)];
        assert_eq!(silent(&clients, Duration::from_secs(90)), [&clients[1]]);
    }
}
