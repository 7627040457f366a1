//! What the snapshots before and after a targeted release prove. Pure: facts in, verdict out.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;

use serde::Serialize;

use super::select::Asked;
use crate::failover::evidence::{Fate, Item, Items, What};
use crate::observe::counters::PerVip;
use crate::observe::states::{Nfs4Client, Standing, State, StateTable};
use crate::observe::table::Range;

/// What nlmfo itself did through one VIP, which lockd's counters include.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ours {
    /// UNLOCK and CANCEL calls.
    pub calls: u64,
    /// Owners on a file whose locks lockd was made to drop.
    pub owners: u64,
}

/// Another client, through one VIP, and what it has lost or gained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Bystander {
    pub client: IpAddr,
    /// None of NFSv4, whose clients have no VIP of their own.
    pub vip: Option<IpAddr>,
    pub before: usize,
    pub gone: usize,
    pub new: usize,
    pub fate: Fate,
}

/// All of lockd's items in one snapshot, and whether the snapshot was exact.
pub struct Look<'a> {
    pub items: &'a Items,
    pub exact: bool,
}

/// What was seen of the NFSv3 part of a release.
pub struct Nlm<'a> {
    pub asked: &'a Asked,
    /// What was to be released.
    pub selected: &'a Items,
    /// What the release of a filesystem also releases.
    pub besides: &'a Items,
    pub before: &'a Items,
    /// Snapshots after it, the later one last.
    pub looks: [Look<'a>; 2],
    pub meanwhile: &'a PerVip,
    pub ours: &'a BTreeMap<IpAddr, Ours>,
    /// Inode number of the network namespace of the release.
    pub netns: u32,
}

impl Nlm<'_> {
    fn is_target(&self, item: &Item) -> bool {
        item.host.netns == self.netns
            && (self.asked.covers(item, self.selected) || self.besides.contains_key(item))
    }

    /// What was to be released and is still there.
    pub fn left(&self) -> Vec<Item> {
        let last = self.looks[1].items.keys();
        last.filter(|item| self.is_selected(item))
            .cloned()
            .collect()
    }

    fn is_selected(&self, item: &Item) -> bool {
        item.host.netns == self.netns
            && (self.asked.covers(item, self.selected) || self.is_held_again(item))
    }

    /// Whether it is a new lock of an owner whose lock or request on the same range was to be released:
    /// the owner has taken it again, or was granted what it waited for.
    fn is_held_again(&self, item: &Item) -> bool {
        let What::Lock { svid, range, .. } = item.what else {
            return false;
        };
        let is_same = |old: &Item| match old.what {
            What::Lock {
                svid: owner,
                range: other,
                ..
            }
            | What::Waiter {
                svid: owner,
                range: other,
                ..
            } => {
                owner == svid
                    && old.host == item.host
                    && old.file == item.file
                    && range.overlaps(other)
            }
            What::Share { .. } => false,
        };
        !self.before.contains_key(item) && self.selected.keys().any(is_same)
    }

    /// Why the release is not confirmed, apart from bystanders; empty if it is.
    pub fn blockers(&self) -> Vec<String> {
        let count = |look: &Look| {
            let left = look.items.iter().filter(|(item, _)| self.is_selected(item));
            left.map(|(_, count)| count).sum::<usize>()
        };
        let mut blockers = Vec::new();
        let [first, last] = &self.looks;
        match (count(first), count(last)) {
            (0, 0) => {}
            (some, 0) => blockers.push(format!(
                "{some} locks, waiters or shares to be released were seen after the release, but not in \
                 the second snapshot: they still change"
            )),
            (_, some) => blockers.push(format!("{some} locks, waiters or shares to be released are still there")),
        }
        if !(first.exact && last.exact) {
            blockers.push(
                "the kernel's lists changed each time they were read: no two reads agreed"
                    .to_owned(),
            );
        }
        blockers
    }

    /// Every other client, once for each VIP.
    pub fn bystanders(&self) -> Vec<Bystander> {
        let mut all: BTreeMap<(u32, IpAddr, IpAddr), Bystander> = BTreeMap::new();
        let after = self.looks[1].items;
        let mut tally = |item: &Item, add: &dyn Fn(&mut Bystander)| {
            if self.is_target(item) {
                return;
            }
            let host = item.host;
            let key = (host.netns, host.vip, host.client);
            add(all.entry(key).or_insert_with(|| Bystander {
                client: host.client,
                vip: Some(host.vip),
                before: 0,
                gone: 0,
                new: 0,
                fate: Fate::Untouched,
            }));
        };
        for (item, &had) in self.before {
            tally(item, &|one| {
                one.before += had;
                one.gone += had.saturating_sub(count_in(after, item));
            });
        }
        for (item, &has) in after {
            tally(item, &|one| {
                one.new += has.saturating_sub(count_in(self.before, item));
            });
        }
        for one in all.values_mut() {
            let Some(vip) = one.vip else { continue };
            let counted = self.meanwhile.get(&vip).copied().unwrap_or_default();
            let ours = self.ours.get(&vip).copied().unwrap_or_default();
            let dropped = counted.released.total() - counted.released.client_reboot;
            let requests = (counted.client_changes() + counted.released.client_reboot)
                .saturating_sub(ours.calls);
            one.fate = match one.gone + one.new {
                0 => Fate::Untouched,
                _ if one.gone > 0 && dropped > ours.owners => Fate::Disturbed,
                _ if requests == 0 => Fate::Disturbed,
                _ => Fate::ChangedByClients,
            };
        }
        all.into_values().collect()
    }

    /// Whether another owner, such as a waiter, now has this lock in place of a released one.
    pub fn is_taken(&self, item: &Item, released: &[Released]) -> bool {
        let fresh = !self.before.contains_key(item) && !self.is_target(item);
        fresh && range(item).is_some_and(|range| overlaps(released, item.file, range))
    }
}

/// A range of a file, by device and inode, that was locked and was to be released.
pub type Released = ((u32, u32, u64), Range);

/// The ranges of NFSv3 and NFSv4 that were to be released.
pub fn released<'a>(
    items: impl Iterator<Item = &'a Item>,
    states: impl Iterator<Item = &'a State>,
) -> Vec<Released> {
    let of_nfs4 = states.filter_map(|state| Some((state.file.as_ref()?, &state.ranges)));
    let of_nfs4 = of_nfs4.flat_map(|(file, ranges)| {
        let file = (file.major, file.minor, file.ino);
        ranges.iter().map(move |(_, range)| (file, *range))
    });
    items
        .filter_map(|item| Some((item.file, range(item)?)))
        .chain(of_nfs4)
        .collect()
}

pub fn overlaps(released: &[Released], file: (u32, u32, u64), range: Range) -> bool {
    (released.iter()).any(|(old, other)| *old == file && range.overlaps(*other))
}

/// Whether an NFSv4 lock is new and in place of a released one.
pub fn is_taken4(
    before: &HashSet<Key>,
    table: &StateTable,
    state: &State,
    released: &[Released],
) -> bool {
    let Some(file) = &state.file else {
        return false;
    };
    let file = (file.major, file.minor, file.ino);
    let mut ranges = state.ranges.iter();
    !before.contains(&key(table, state))
        && ranges.any(|(_, range)| overlaps(released, file, *range))
}

fn count_in(items: &Items, item: &Item) -> usize {
    items.get(item).copied().unwrap_or_default()
}

/// Of a held lock.
fn range(item: &Item) -> Option<Range> {
    match item.what {
        What::Lock { range, .. } => Some(range),
        _ => None,
    }
}

/// What was seen of the NFSv4 part of a release.
pub struct Nfs4<'a> {
    /// Whether whole clients were to be expired, rather than states revoked.
    pub expired: bool,
    pub selected: &'a StateTable,
    pub besides: &'a StateTable,
    pub before: &'a StateTable,
    /// Snapshots after it, the later one last, each with whether it was exact.
    pub looks: [(&'a StateTable, bool); 2],
    /// Seconds from before the first look until after the last.
    pub seconds: u64,
}

impl Nfs4<'_> {
    /// What of the selection is still held.
    pub fn left(&self, look: &StateTable) -> usize {
        match self.expired {
            true => {
                let ids: HashSet<_> = self.selected.clients.iter().map(|c| c.id).collect();
                look.clients.iter().filter(|c| ids.contains(&c.id)).count()
            }
            false => {
                let ids = held_ids(self.selected);
                let held = look.states.iter().filter(|state| state.is_held());
                held.filter(|state| ids.contains(&key(look, state))).count()
            }
        }
    }

    pub fn blockers(&self) -> Vec<String> {
        let what = match self.expired {
            true => "NFSv4 clients",
            false => "NFSv4 states",
        };
        let mut blockers = Vec::new();
        let [first, last] = self.looks;
        match (self.left(first.0), self.left(last.0)) {
            (0, 0) => {}
            (some, 0) => blockers.push(format!(
                "{some} {what} to be released were seen after the release, but not in the second \
                 snapshot: they still change"
            )),
            (_, some) => blockers.push(format!("{some} {what} to be released are still there")),
        }
        if !(first.1 && last.1) {
            blockers.push("NFSv4 state changed each time it was read".to_owned());
        }
        blockers
    }

    /// The other clients. There are no counters of NFSv4 calls: a change counts as the client's own only
    /// if the client has renewed its lease since before the release.
    pub fn bystanders(&self) -> Vec<Bystander> {
        let after = self.looks[1].0;
        let gone_on_purpose: HashSet<_> = match self.expired {
            true => self.selected.clients.iter().map(|c| c.id).collect(),
            false => HashSet::new(),
        };
        let mut taken: HashSet<Key> = held_ids(self.besides);
        taken.extend(held_ids(self.selected));
        let (had, has) = (by_client(self.before), by_client(after));
        let places: HashMap<_, _> = (after.clients.iter().enumerate())
            .map(|(place, client)| (client.id, place))
            .collect();
        let revoked = self.revoked(&taken);
        let others = self.before.clients.iter().enumerate();
        let others = others.filter(|(_, client)| !gone_on_purpose.contains(&client.id));
        let mut all = Vec::new();
        for (place, client) in others {
            let had = facts(self.before, &had[place], &taken);
            let now = places.get(&client.id).copied();
            let now_has = now.map_or_else(BTreeSet::new, |place| facts(after, &has[place], &taken));
            let (gone, new) = (
                had.difference(&now_has).count(),
                now_has.difference(&had).count(),
            );
            let renewed = now.is_some_and(|place| is_active(&after.clients[place], self.seconds));
            all.push(Bystander {
                client: client.address,
                vip: None,
                before: had.len(),
                gone,
                new,
                fate: match gone + new {
                    _ if revoked.contains(&client.id) => Fate::Disturbed,
                    0 => Fate::Untouched,
                    _ if renewed => Fate::ChangedByClients,
                    _ => Fate::Disturbed,
                },
            });
        }
        all
    }
}

impl Nfs4<'_> {
    /// Clients of which an unselected state was revoked in the meantime.
    fn revoked(&self, taken: &HashSet<Key>) -> HashSet<[u32; 2]> {
        let revoked = |table: &StateTable| -> HashSet<Key> {
            let all = table.states.iter();
            all.filter(|state| state.standing == Standing::AdminRevoked)
                .map(|state| key(table, state))
                .collect()
        };
        let (before, after) = (revoked(self.before), revoked(self.looks[1].0));
        (after.difference(&before))
            .filter(|key| !taken.contains(*key))
            .map(|(client, _)| *client)
            .collect()
    }
}

fn is_active(client: &Nfs4Client, seconds: u64) -> bool {
    // The kernel rounds the seconds down.
    (client.info.renewed_seconds).is_some_and(|ago| ago <= seconds + 1)
}

/// Identifies a state while its client changes it: the stateid without the generation.
pub type Key = ([u32; 2], [u8; 12]);

pub fn key(table: &StateTable, state: &State) -> Key {
    let mut other = [0; 12];
    other.copy_from_slice(&state.id[4..]);
    (table.clients[state.client].id, other)
}

pub fn held_ids(table: &StateTable) -> HashSet<Key> {
    let held = table.states.iter().filter(|state| state.is_held());
    held.map(|state| key(table, state)).collect()
}

fn by_client(table: &StateTable) -> Vec<Vec<&State>> {
    let mut all = vec![Vec::new(); table.clients.len()];
    for state in table.states.iter().filter(|state| state.is_held()) {
        all[state.client].push(state);
    }
    all
}

/// What is compared of a client's states: those that were not to be released.
fn facts(table: &StateTable, states: &[&State], taken: &HashSet<Key>) -> BTreeSet<String> {
    (states.iter())
        .filter(|state| !taken.contains(&key(table, state)))
        .map(|state| {
            let (_, other) = key(table, state);
            let State {
                kind,
                access,
                deny,
                ranges,
                ..
            } = state;
            format!("{other:02x?} {kind} {access} {deny} {ranges:?}")
        })
        .collect()
}

#[cfg(test)]
mod tests;
