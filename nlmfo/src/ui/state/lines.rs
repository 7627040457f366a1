//! Which lines a pane has, and which of them the filter takes.

use std::net::IpAddr;

use crate::ticks::detail::Detail;
use crate::ticks::events::Event;
use crate::ticks::world::World;

/// A line of a VIP's pane; the numbers are places in its [`Detail`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    Client(usize),
    Waiter(usize),
    Share(usize),
    Lock(usize),
    /// An NFSv4 client.
    Client4(usize),
    /// One of its requests: the places of both.
    Waiter4(usize, usize),
    /// One of its states: the places of both.
    State(usize, usize),
    /// So many are not listed.
    More(u64),
}

/// A part of a VIP's address, a client's address or name, or a file's path; capital or
/// small letters do not matter.
pub struct Filter {
    text: String,
}

impl Filter {
    pub fn new(text: &str) -> Self {
        Filter {
            text: text.to_lowercase(),
        }
    }

    fn takes(&self, text: &str) -> bool {
        self.text.is_empty() || text.to_lowercase().contains(&self.text)
    }

    pub fn takes_event(&self, event: &Event) -> bool {
        self.takes(&event.text) || event.vip.is_some_and(|vip| self.takes(&vip.to_string()))
    }

    /// Its address, or one of its clients or files.
    pub fn takes_vip(&self, world: &World, vip: IpAddr) -> bool {
        let in_detail = |detail: &Detail| {
            let mut clients = detail.clients.iter();
            clients.any(|client| self.takes_client(&client.name, client.client))
                || files(detail).any(|(_, file)| self.takes(file))
                || detail.nfs4.iter().any(|client| {
                    self.takes_client(&client.name, client.client)
                        || client.lines.iter().any(|line| self.takes(&line.file))
                        || client.waiters.iter().any(|line| self.takes(&line.file))
                })
        };
        self.takes(&vip.to_string()) || world.details.get(&vip).is_some_and(in_detail)
    }

    fn takes_client(&self, name: &str, address: IpAddr) -> bool {
        self.takes(name) || self.takes(&address.to_string())
    }
}

/// The files of a detail's lines, with their clients.
fn files(detail: &Detail) -> impl Iterator<Item = (usize, &str)> {
    let waiters = detail.waiters.iter().map(|line| (line.client, &line.file));
    let shares = detail.shares.iter().map(|line| (line.client, &line.file));
    let locks = detail.locks.iter().map(|line| (line.client, &line.file));
    (waiters.chain(shares).chain(locks)).map(|(client, file)| (client, file.as_str()))
}

/// Each client, and what it waits for, has reserved and holds. The VIP's own address
/// takes all of them.
pub fn of_vip(world: &World, vip: IpAddr, filter: &str) -> Vec<Line> {
    let Some(detail) = world.details.get(&vip) else {
        return Vec::new();
    };
    let filter = Filter::new(filter);
    let all = filter.takes(&vip.to_string());
    let whole: Vec<bool> = (detail.clients.iter())
        .map(|client| all || filter.takes_client(&client.name, client.client))
        .collect();
    let mut by_client: Vec<Vec<Line>> = vec![Vec::new(); detail.clients.len()];
    let mut add = |client: usize, file: &str, line| {
        // A recording may have been tampered with.
        if let Some(lines) = by_client.get_mut(client)
            && (whole[client] || filter.takes(file))
        {
            lines.push(line);
        }
    };
    for (place, line) in detail.waiters.iter().enumerate() {
        add(line.client, &line.file, Line::Waiter(place));
    }
    for (place, line) in detail.shares.iter().enumerate() {
        add(line.client, &line.file, Line::Share(place));
    }
    for (place, line) in detail.locks.iter().enumerate() {
        add(line.client, &line.file, Line::Lock(place));
    }
    let mut lines = Vec::new();
    for (client, of_client) in by_client.into_iter().enumerate() {
        if whole[client] || !of_client.is_empty() {
            lines.push(Line::Client(client));
            lines.extend(of_client);
        }
    }
    for (place, client) in detail.nfs4.iter().enumerate() {
        let whole = all || filter.takes_client(&client.name, client.client);
        let waiters = (client.waiters.iter().enumerate())
            .filter(|(_, line)| whole || filter.takes(&line.file))
            .map(|(line, _)| Line::Waiter4(place, line));
        let states = (client.lines.iter().enumerate())
            .filter(|(_, line)| whole || filter.takes(&line.file))
            .map(|(line, _)| Line::State(place, line));
        let taken: Vec<Line> = waiters.chain(states).collect();
        if whole || !taken.is_empty() {
            lines.push(Line::Client4(place));
            lines.extend(taken);
        }
    }
    if detail.more > 0 {
        lines.push(Line::More(detail.more));
    }
    lines
}
