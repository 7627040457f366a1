//! What NFSv4 clients hold through each VIP, as counts and as lines of its pane.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::detail::{IN_ALL, PER_VIP};
use crate::foreign;
use crate::observe::behind::{Holder, Holders};
use crate::observe::states::{Access, Counts4, Kind, Nfs4Client, State, StateTable, Waiter4};
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
    /// False if it has no connection now: it was last seen on this VIP.
    #[serde(default = "yes")]
    pub connected: bool,
    /// Everything that it holds, including what is beyond the limit.
    pub held: u64,
    pub lines: Vec<StateLine4>,
    /// Its blocked requests.
    #[serde(default)]
    pub waiters: Vec<WaitLine4>,
}

fn yes() -> bool {
    true
}

/// An NFSv4 client without a connection. What it holds may be of any VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotConnected {
    pub client: IpAddr,
    #[serde(deserialize_with = "foreign::text")]
    pub name: String,
    pub minor: u32,
    /// Everything that it holds.
    pub held: u64,
    /// The VIPs that it used when it was last seen with a connection; empty if the watch has never
    /// seen it with one.
    pub last_seen: Vec<IpAddr>,
}

impl std::fmt::Display for NotConnected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let NotConnected {
            client,
            name,
            minor,
            held,
            ..
        } = self;
        write!(
            f,
            "{client} {name} NFSv4.{minor}, {held} held, not connected"
        )?;
        let vips: Vec<String> = self.last_seen.iter().map(IpAddr::to_string).collect();
        match vips.is_empty() {
            true => Ok(()),
            false => write!(f, ", last seen on {}", vips.join(", ")),
        }
    }
}

/// The VIPs that each client used when it was last seen with a connection.
#[derive(Debug, Default)]
pub struct LastSeen {
    by_client: HashMap<[u32; 2], Vec<IpAddr>>,
}

impl LastSeen {
    /// Takes the clients of a look, and forgets those that the server has forgotten.
    pub fn look(&mut self, table: &StateTable) {
        let mut now = HashMap::with_capacity(table.clients.len());
        for client in &table.clients {
            let before = self.by_client.remove(&client.id);
            let vips = match client.vips.is_empty() {
                true => before,
                false => Some(client.vips.clone()),
            };
            now.extend(vips.map(|vips| (client.id, vips)));
        }
        self.by_client = now;
    }

    /// Of a client that has no connection now.
    fn of(&self, client: &Nfs4Client) -> &[IpAddr] {
        (self.by_client.get(&client.id)).map_or(&[], |vips| vips.as_slice())
    }

    /// The VIPs that the client uses or, without a connection, has used.
    fn vips<'a>(&'a self, client: &'a Nfs4Client) -> &'a [IpAddr] {
        match client.vips.is_empty() {
            true => self.of(client),
            false => &client.vips,
        }
    }

    /// The clients without a connection.
    pub fn not_connected(&self, table: &StateTable) -> Vec<NotConnected> {
        (table.clients.iter().zip(table.counts_of_each()))
            .filter(|(client, _)| client.vips.is_empty())
            .take(PER_VIP)
            .map(|(client, counts)| NotConnected {
                client: client.address,
                name: client.name.to_string(),
                minor: client.minor,
                held: counts.total() as u64,
                last_seen: self.of(client).to_vec(),
            })
            .collect()
    }

    /// What they hold, by the VIPs on which they were last seen.
    pub fn held(&self, table: &StateTable) -> BTreeMap<IpAddr, Counts4> {
        let mut held: BTreeMap<IpAddr, Counts4> = BTreeMap::new();
        let clients = table.clients.iter().zip(table.counts_of_each());
        for (client, counts) in clients.filter(|(client, _)| client.vips.is_empty()) {
            for vip in self.of(client) {
                *held.entry(*vip).or_default() += counts;
            }
        }
        held
    }
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

/// A blocked request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WaitLine4 {
    pub mode: Mode,
    pub range: Range,
    #[serde(deserialize_with = "foreign::text")]
    pub file: String,
    /// A client, through any VIP, that it waits for; none if a local process holds the lock.
    pub holder: Option<IpAddr>,
}

/// The blocked requests of each VIP's clients. A client that uses several counts for each.
pub fn waiting(table: &StateTable) -> BTreeMap<IpAddr, u64> {
    let mut waiting = BTreeMap::new();
    for waiter in &table.waiters {
        for vip in &table.clients[waiter.client].vips {
            *waiting.entry(*vip).or_default() += 1;
        }
    }
    waiting
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

/// The requests that panes may show.
fn shown_waiters(table: &StateTable) -> impl Iterator<Item = &Waiter4> {
    table.waiters.iter().take(PER_VIP)
}

/// Their files.
pub fn files(table: &StateTable) -> impl Iterator<Item = &FileInfo> {
    let of_states = shown(table).filter_map(|state| state.file.as_ref());
    of_states.chain(shown_waiters(table).map(|waiter| &waiter.file))
}

/// The clients of one VIP with their lines.
#[derive(Debug, Default)]
pub struct OfVip {
    pub clients: Vec<ClientLine4>,
    /// The number of lines that did not fit.
    pub more: u64,
    lines: usize,
}

/// Those of each VIP, and those that were last seen on it.
pub fn clients(
    table: &StateTable,
    last_seen: &LastSeen,
    holders: &Holders,
    name: impl Fn(&FileInfo) -> String,
) -> BTreeMap<IpAddr, OfVip> {
    let mut waiters: Vec<Vec<WaitLine4>> = vec![Vec::new(); table.clients.len()];
    for waiter in shown_waiters(table) {
        waiters[waiter.client].push(WaitLine4 {
            mode: waiter.mode,
            range: waiter.range,
            file: name(&waiter.file),
            holder: holders.of4(table, waiter).iter().find_map(Holder::client),
        });
    }
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
    let clients = table.clients.iter().zip(lines).zip(waiters).zip(counts);
    for (((client, lines), waiters), counts) in clients {
        let held = counts.total() as u64;
        if held == 0 && waiters.is_empty() {
            continue;
        }
        for vip in last_seen.vips(client) {
            let of_vip = all.entry(*vip).or_default();
            let room = lines.len().min(PER_VIP - of_vip.lines);
            of_vip.lines += room;
            of_vip.more += held - (room as u64).min(held);
            let lines = lines[..room].to_vec();
            let line = ClientLine4 {
                waiters: waiters.clone(),
                ..line(client, held, lines)
            };
            of_vip.clients.push(line);
        }
    }
    all
}

fn line(client: &Nfs4Client, held: u64, lines: Vec<StateLine4>) -> ClientLine4 {
    ClientLine4 {
        client: client.address,
        name: client.name.to_string(),
        minor: client.minor,
        connected: !client.vips.is_empty(),
        held,
        lines,
        waiters: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::states::{Standing, sample};
    use crate::observe::table::LockTable;

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
            ..StateTable::default()
        }
    }

    fn of_each(table: &StateTable, last_seen: &LastSeen) -> BTreeMap<IpAddr, OfVip> {
        let holders = Holders::of_awaited(&LockTable::default(), table);
        clients(table, last_seen, &holders, |_| String::new())
    }

    #[test]
    fn a_request_is_shown_with_whom_it_waits_for() {
        let mut table = table(1);
        let file = FileInfo {
            major: 8,
            minor: 1,
            ino: 5,
            fh: Vec::new(),
        };
        table.states[1].file = Some(file.clone());
        table.clients[1] = sample::client(&["10.77.0.3"]);
        table.clients[1].id = [1, 3];
        table.waiters = vec![Waiter4 {
            client: 1,
            file,
            mode: Mode::Read,
            range: Range { start: 9, end: 9 },
            owner: Vec::new(),
            owner_at: 1,
        }];
        let vip = "10.77.0.3".parse().unwrap();
        assert_eq!(waiting(&table), [(vip, 1)].into());
        let line = &of_each(&table, &LastSeen::default())[&vip].clients[0].waiters[0];
        assert_eq!(
            (line.mode, line.holder),
            (Mode::Read, Some([10, 77, 1, 1].into()))
        );
    }

    #[test]
    fn a_trunked_client_is_shown_with_each_of_its_vips() {
        let table = table(2);
        let held = held(&table);
        assert_eq!(held.len(), 2);
        for (vip, counts) in &held {
            assert_eq!((counts.clients, counts.opens, counts.locks), (1, 2, 1));
            let of_vip = &of_each(&table, &LastSeen::default())[vip];
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
        for of_vip in of_each(&table, &LastSeen::default()).into_values() {
            assert_eq!(of_vip.clients[0].lines.len(), PER_VIP);
            assert_eq!(of_vip.more, PER_VIP as u64 + 1);
        }
    }

    #[test]
    fn a_client_that_loses_its_connections_stays_with_the_vips_it_had() {
        let mut table = table(2);
        table.clients[1].id = [1, 3];
        let mut seen = LastSeen::default();
        seen.look(&table);
        assert!(seen.not_connected(&table)[0].last_seen.is_empty());
        table.clients[0].vips.clear();
        seen.look(&table);
        let lost = &seen.not_connected(&table)[0];
        assert!(
            lost.to_string()
                .ends_with("3 held, not connected, last seen on 10.77.0.1, 10.77.0.2")
        );
        let of_vip = &of_each(&table, &seen)[&lost.last_seen[0]];
        assert!(!of_vip.clients[0].connected);
        assert_eq!(seen.held(&table)[&lost.last_seen[1]].opens, 2);

        // The server has forgotten it.
        seen.look(&StateTable::default());
        assert!(seen.not_connected(&table)[0].last_seen.is_empty());
    }
}
