//! What NFSv4 clients hold through each VIP, as counts and as lines of its pane.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::detail::{IN_ALL, PER_VIP};
use crate::foreign;
use crate::observe::states::{Access, Counts4, Kind, Nfs4Client, State, StateTable};
use crate::observe::table::{FileInfo, Mode, Range};

/// An NFSv4 client that holds something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientLine4 {
    pub client: IpAddr,
    /// The owner string that the client introduced itself with.
    #[serde(deserialize_with = "foreign::text")]
    pub name: String,
    /// The minor version.
    pub minor: u32,
    /// Everything that it holds, including what is beyond the limit.
    pub held: u64,
    pub lines: Vec<StateLine4>,
}

/// An open, a locked range, a delegation or a layout.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateLine4 {
    pub kind: Kind,
    pub access: Access,
    /// What an open denies others.
    pub deny: Access,
    /// Of a lock.
    pub range: Option<Range>,
    /// Empty for a state whose file is gone.
    #[serde(deserialize_with = "foreign::text")]
    pub file: String,
}

/// What is held through each VIP. A client that uses several counts for each.
pub fn held(table: &StateTable) -> BTreeMap<IpAddr, Counts4> {
    let mut held: BTreeMap<IpAddr, Counts4> = BTreeMap::new();
    for (client, counts) in table.clients.iter().zip(table.counts_of_each()) {
        for vip in &client.vips {
            *held.entry(*vip).or_default() += counts;
        }
    }
    held
}

/// The states that panes may show. The others are only counted.
fn shown(table: &StateTable) -> impl Iterator<Item = &State> {
    let held = table.states.iter().filter(|state| state.is_held());
    held.take(IN_ALL)
}

/// Their files.
pub fn files(table: &StateTable) -> impl Iterator<Item = &FileInfo> {
    shown(table).filter_map(|state| state.file.as_ref())
}

/// The clients of one VIP with their lines.
#[derive(Debug, Default)]
pub struct OfVip {
    pub clients: Vec<ClientLine4>,
    /// The number of lines that found no room.
    pub more: u64,
    lines: usize,
}

/// Those of each VIP.
pub fn clients(table: &StateTable, name: impl Fn(&FileInfo) -> String) -> BTreeMap<IpAddr, OfVip> {
    let mut lines: Vec<Vec<StateLine4>> = vec![Vec::new(); table.clients.len()];
    for state in shown(table) {
        let file = state.file.as_ref().map_or_else(String::new, &name);
        let line = |access, range| StateLine4 {
            kind: state.kind,
            access,
            deny: state.deny,
            range,
            file: file.clone(),
        };
        let of_client = &mut lines[state.client];
        match state.kind {
            Kind::Lock => of_client.extend((state.ranges.iter()).map(|&(mode, range)| {
                let access = Access {
                    read: mode == Mode::Read,
                    write: mode == Mode::Write,
                };
                line(access, Some(range))
            })),
            _ => of_client.push(line(state.access, None)),
        }
    }
    let mut all: BTreeMap<IpAddr, OfVip> = BTreeMap::new();
    let counts = table.counts_of_each();
    for ((client, lines), counts) in table.clients.iter().zip(lines).zip(counts) {
        let held = counts.total() as u64;
        if held == 0 {
            continue;
        }
        for vip in &client.vips {
            let of_vip = all.entry(*vip).or_default();
            let room = lines.len().min(PER_VIP - of_vip.lines);
            of_vip.lines += room;
            of_vip.more += held - (room as u64).min(held);
            let lines = lines[..room].to_vec();
            of_vip.clients.push(line(client, held, lines));
        }
    }
    all
}

fn line(client: &Nfs4Client, held: u64, lines: Vec<StateLine4>) -> ClientLine4 {
    ClientLine4 {
        client: client.address,
        name: client.name.to_string(),
        minor: client.minor,
        held,
        lines,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::states::{Standing, sample};

    /// A client of two VIPs that holds `opens` opens and one lock, and one without a connection.
    fn table(opens: usize) -> StateTable {
        let open = State {
            access: Access {
                read: true,
                write: false,
            },
            ..sample::state(0, Kind::Open)
        };
        let mut states = vec![open.clone(); opens];
        states.push(State {
            ranges: vec![(Mode::Write, Range { start: 0, end: 9 })],
            ..sample::state(0, Kind::Lock)
        });
        states.push(State {
            standing: Standing::Closed,
            ..open.clone()
        });
        states.push(State { client: 1, ..open });
        StateTable {
            clients: vec![
                sample::client(&["10.77.0.1", "10.77.0.2"]),
                sample::client(&[]),
            ],
            states,
        }
    }

    #[test]
    fn a_trunked_client_is_shown_with_each_of_its_vips() {
        let table = table(2);
        let held = held(&table);
        assert_eq!(held.len(), 2);
        for (vip, counts) in &held {
            assert_eq!((counts.clients, counts.opens, counts.locks), (1, 2, 1));
            let of_vip = &clients(&table, |_| String::new())[vip];
            assert_eq!((of_vip.clients.len(), of_vip.more), (1, 0));
            let client = &of_vip.clients[0];
            assert_eq!(client.held, 3);
            let lock = client.lines.last().unwrap();
            assert!(lock.access.write && lock.range == Some(Range { start: 0, end: 9 }));
        }
    }

    #[test]
    fn what_finds_no_room_is_counted() {
        let table = table(2 * PER_VIP);
        for of_vip in clients(&table, |_| String::new()).into_values() {
            assert_eq!(of_vip.clients[0].lines.len(), PER_VIP);
            assert_eq!(of_vip.more, PER_VIP as u64 + 1);
        }
    }
}
