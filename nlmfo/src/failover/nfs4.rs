//! NFSv4 state in a release: a shared knfsd cannot move it, so the report names it.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;

use super::record::Record;
use super::watch::Watch;
use crate::causes::chain;
use crate::kernel::path::PathFinder;
use crate::observe::states::Counts4;
use crate::observe::states::describe::{StateLine, describe};
use crate::observe::states::take::{StateSnapshot, StatesError};

/// What NFSv4 clients hold through a VIP after its release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Nfs4Report {
    /// Ignored by request (`--nfs 3`).
    LeftOut,
    /// No state.
    None,
    Held {
        counts: Counts4,
        /// Of these, clients without a connection: the VIP of their state is unknown.
        not_connected: usize,
        states: Vec<StateLine>,
    },
    /// The state could not be read.
    Unknown { reason: String },
}

/// Adds what NFSv4 clients hold through the VIPs to the record. If that cannot be read, the
/// release's report says so.
pub fn record(record: &mut Record, watch: &mut Watch, vips: &[IpAddr], paths: &mut PathFinder) {
    for &vip in vips {
        if let Ok(states) = watch.states(vip) {
            record.add_nfs4(describe(&states.table.held_through(vip), paths));
        }
    }
}

/// The reason and the fix.
const CANNOT_MOVE: &str = "a knfsd that several VIPs share cannot move it: it has one client ID per NFSv4 client and \
                           no grace for one address; move all VIPs of the server together with --whole-server, run \
                           one server per VIP, drop the state (`nlmfo release --client C`), or ignore NFSv4 \
                           with --nfs 3";

impl Nfs4Report {
    /// From the last snapshot of the VIP's state.
    pub fn new(
        seen: &Result<StateSnapshot, StatesError>,
        vip: IpAddr,
        paths: &mut PathFinder,
    ) -> Self {
        let snapshot = match seen {
            Ok(snapshot) => snapshot,
            Err(error) => {
                let reason = chain(error);
                return Nfs4Report::Unknown { reason };
            }
        };
        let held = snapshot.table.held_through(vip);
        match (held.states.is_empty(), snapshot.exact) {
            (true, true) => Nfs4Report::None,
            (true, false) => Nfs4Report::Unknown {
                reason: StatesError::Changing.to_string(),
            },
            (false, _) => Nfs4Report::Held {
                counts: held.counts(),
                not_connected: (held.clients.iter())
                    .filter(|client| client.vips.is_empty())
                    .count(),
                states: describe(&held, paths),
            },
        }
    }

    /// The addresses of clients that hold something and have no connection, each once, in
    /// order.
    fn not_connected(&self) -> Vec<IpAddr> {
        let Nfs4Report::Held { states, .. } = self else {
            return Vec::new();
        };
        let lone = states.iter().filter(|state| state.client.vips.is_empty());
        let mut lone: Vec<IpAddr> = lone.map(|state| state.client.client).collect();
        lone.sort_unstable();
        lone.dedup();
        lone
    }

    /// Why it keeps the release from being confirmed, if it does.
    pub fn blocker(&self) -> Option<String> {
        match self {
            Nfs4Report::LeftOut | Nfs4Report::None => None,
            Nfs4Report::Held {
                counts,
                not_connected,
                ..
            } => {
                let which = match not_connected {
                    0 => "held through it".to_owned(),
                    some if *some == counts.clients => {
                        "held by clients without a connection, VIP unknown".to_owned()
                    }
                    some => format!(
                        "held through it, {some} by clients without a connection, VIP unknown"
                    ),
                };
                let mut blocker = format!("NFSv4 state of {counts} is {which}: {CANNOT_MOVE}");
                let lone = self.not_connected();
                if !lone.is_empty() {
                    let commands: Vec<String> = (lone.iter())
                        .map(|client| format!("`nlmfo release --client {client}`"))
                        .collect();
                    blocker.push_str("; a client without a connection may hold its state through any VIP: if it is dead, ");
                    blocker.push_str(&commands.join(" and "));
                    blocker.push_str(" drops it");
                }
                Some(blocker)
            }
            Nfs4Report::Unknown { reason } => Some(format!(
                "NFSv4 state could not be read: {reason}; --nfs 3 ignores NFSv4"
            )),
        }
    }
}

impl fmt::Display for Nfs4Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Nfs4Report::None | Nfs4Report::Unknown { .. } => Ok(()),
            Nfs4Report::LeftOut => writeln!(
                f,
                "  note: --nfs 3: NFSv4 state was not checked and is lost when the VIP moves"
            ),
            Nfs4Report::Held { states, .. } => states
                .iter()
                .try_for_each(|state| writeln!(f, "  ! NFSv4, not released: {state}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::states::{Access, Kind, State, StateTable, sample};

    const VIP: &str = "10.77.0.1";

    fn seen(vips: &[&str], exact: bool) -> Result<StateSnapshot, StatesError> {
        let open = State {
            access: Access {
                read: true,
                write: false,
            },
            owner: b"open id:1".to_vec(),
            ..sample::state(0, Kind::Open)
        };
        Ok(StateSnapshot {
            table: StateTable {
                clients: vec![sample::client(vips)],
                states: vec![open],
                ..StateTable::default()
            },
            exact,
            ..StateSnapshot::default()
        })
    }

    fn report(seen: Result<StateSnapshot, StatesError>) -> Nfs4Report {
        let mut paths = PathFinder::new(0).unwrap();
        Nfs4Report::new(&seen, VIP.parse().unwrap(), &mut paths)
    }

    #[test]
    fn state_through_the_vip_or_an_unknown_one_is_never_confirmed() {
        let held = report(seen(&["10.77.0.2", VIP], true));
        let blocker = held.blocker().unwrap();
        assert!(
            blocker.contains("1 client with 1 open is held through it"),
            "{blocker}"
        );
        assert!(
            held.to_string().contains("through 10.77.0.2,10.77.0.1"),
            "{held}"
        );
        let lone = report(seen(&[], true)).blocker().unwrap();
        assert!(lone.contains("without a connection, VIP unknown"), "{lone}");
        assert!(
            lone.contains("`nlmfo release --client 10.77.1.1` drops it"),
            "{lone}"
        );
        // Held is held, also when it changes.
        assert!(report(seen(&[VIP], false)).blocker().is_some());
    }

    #[test]
    fn only_an_exact_look_proves_that_there_is_none() {
        assert_eq!(report(seen(&["10.77.0.2"], true)), Nfs4Report::None);
        let vague = report(seen(&["10.77.0.2"], false)).blocker().unwrap();
        assert!(vague.contains("changed each time"), "{vague}");
        let unreadable = report(Err(StatesError::OtherServer { here: 1, there: 2 }));
        assert!(
            unreadable
                .blocker()
                .unwrap()
                .contains("another network namespace")
        );
        assert_eq!(Nfs4Report::LeftOut.blocker(), None);
        assert!(Nfs4Report::LeftOut.to_string().contains("--nfs 3"));
    }
}
