//! The last look at what lockd and nfsd hold, and the details made from it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::known::{Ages, Keys, Names};
use super::states::{self, LastSeen, NotConnected};
use crate::kernel::path::PathFinder;
use crate::observe::behind::{Holder, Holders};
use crate::observe::states::{Counts4, StateTable};
use crate::observe::table::{FileId, FileInfo, LockTable};
use crate::ticks::detail::{self, Detail, Gauges};

/// See the top of the file.
#[derive(Default)]
pub struct Locks {
    /// Of one network namespace.
    table: LockTable,
    /// Of the same; empty if it could not be read.
    states: StateTable,
    pub gauges: BTreeMap<IpAddr, Gauges>,
    /// What NFSv4 clients hold; none if it could not be read.
    pub held4: Option<BTreeMap<IpAddr, Counts4>>,
    /// Blocked requests of NFSv4 clients.
    pub waiting4: BTreeMap<IpAddr, u64>,
    /// NFSv4 clients without a connection.
    pub not_connected: Vec<NotConnected>,
    /// What they hold, by the VIPs on which they were last seen.
    pub last_held4: BTreeMap<IpAddr, Counts4>,
    last_seen: LastSeen,
    ages: Ages,
    names: Names,
    keys: Keys,
    /// The current details.
    details: BTreeMap<IpAddr, Detail>,
    /// The details that were not sent yet.
    changed: BTreeSet<IpAddr>,
}

impl Locks {
    /// Takes the locks and NFSv4 states of a look.
    ///
    /// # Errors
    /// If the mounted filesystems cannot be read; files have no names then.
    pub fn take(
        &mut self,
        table: LockTable,
        states: Option<&StateTable>,
        at_ms: u64,
        first: Option<IpAddr>,
    ) -> std::io::Result<()> {
        self.keys = self.ages.look(&table, at_ms);
        self.gauges = detail::gauges(&table);
        self.table = table;
        self.held4 = states.map(states::held);
        if let Some(states) = states {
            self.last_seen.look(states);
        }
        self.states = states.cloned().unwrap_or_default();
        self.waiting4 = states::waiting(&self.states);
        self.not_connected = self.last_seen.not_connected(&self.states);
        self.last_held4 = self.last_seen.held(&self.states);
        self.describe(first)
    }

    /// Makes the details again, those of `first` before the others.
    pub fn describe(&mut self, first: Option<IpAddr>) -> std::io::Result<()> {
        let table = &self.table;
        let since = |lock: &_| self.ages.since(&self.keys, lock);
        let mut files: BTreeSet<FileId> = BTreeSet::new();
        let mut named = |id| {
            files.insert(id);
            String::new()
        };
        // Which files have a line at all: only those are looked up.
        let holders = Holders::of_awaited(table, &self.states);
        let waiters4 = &self.states.waiters;
        let holder = |waiter: &_| holders.of(table, waiter).iter().find_map(Holder::client);
        detail::details(table, waiters4, first, &mut named, |_| None, holder);
        let files = files.into_iter().map(|id| table.file(id));
        let files: Vec<&FileInfo> = files.chain(states::files(&self.states)).collect();
        let looked_up =
            PathFinder::new(0).map(|mut finder| self.names.look_up(&files, &mut finder));
        let name = |id| self.names.name(table.file(id));
        let made = detail::details(table, waiters4, first, name, since, holder);
        let mut details: BTreeMap<IpAddr, Detail> = made
            .into_iter()
            .map(|detail| (detail.vip, detail))
            .collect();
        let name = |file: &_| self.names.name(file);
        let nfs4 = states::clients(&self.states, &self.last_seen, &holders, name);
        for (vip, of_vip) in nfs4 {
            let detail = details.entry(vip).or_insert_with(|| Detail::empty(vip));
            detail.nfs4 = of_vip.clients;
            detail.more += of_vip.more;
        }
        for vip in self.details.keys() {
            details.entry(*vip).or_insert_with(|| Detail::empty(*vip));
        }
        let is_new = |(vip, detail): &(&IpAddr, &Detail)| self.details.get(vip) != Some(detail);
        self.changed
            .extend(details.iter().filter(is_new).map(|(vip, _)| *vip));
        self.details = details;
        looked_up
    }

    /// The details that have changed since this was asked the last time.
    pub fn changed(&mut self) -> Vec<Detail> {
        let changed = std::mem::take(&mut self.changed);
        let details = changed
            .iter()
            .filter_map(|vip| self.details.get(vip).cloned());
        let details: Vec<Detail> = details.collect();
        // The caller now knows that there is nothing.
        self.details.retain(|_, detail| !detail.is_empty());
        details
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticks::tables;

    #[test]
    fn only_what_has_changed_is_told_and_an_end_once() {
        let mut locks = Locks::default();
        let table = tables::many(2, 3);
        locks.take(table.clone(), None, 0, None).unwrap();
        assert_eq!(locks.changed().len(), 2);
        locks.take(table.clone(), None, 1_000, None).unwrap();
        assert_eq!(locks.changed(), []);

        let gone = table.hosts[0].key.vip;
        let rest = table.part(|host| host.vip != gone);
        locks.take(rest.clone(), None, 2_000, None).unwrap();
        assert_eq!(locks.changed(), [Detail::empty(gone)]);
        locks.take(rest, None, 3_000, None).unwrap();
        assert_eq!(locks.changed(), []);
        assert!(!locks.gauges.contains_key(&gone));
    }
}
