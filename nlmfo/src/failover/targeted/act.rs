//! What a targeted release does: calls to lockd, `expire` to nfsd, and waiting for what lockd
//! grants then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};

use super::proof::{self, Ours};
use super::select::{Selection, Wanted, Whole};
use super::{Looked, Plan};
use crate::causes::chain;
use crate::failover::evidence::items;
use crate::failover::watch::Watch;
use crate::kernel::netlink::NfsdNetlink;
use crate::kernel::nfs4_clients::Clients;
use crate::observe::table::{LockTable, Waiter};
use crate::release::filesystem::Filesystem;
use crate::release::free_all::FreeAll;
use crate::release::target::{targets, targets_one_by_one};
use crate::release::{self, HostReport, Job, Method, Target, Turn};

/// Maximum time for lockd to grant requests that waited for a released lock.
const GRANTS: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// A release under way.
pub(super) struct Act<'a> {
    pub plan: &'a Plan,
    pub watch: &'a Watch,
    pub turn: &'a Turn,
    pub selection: &'a Selection,
    pub failed: Vec<HostReport>,
    pub blockers: Vec<String>,
    pub ours: BTreeMap<IpAddr, Ours>,
}

impl Act<'_> {
    pub async fn release(&mut self) -> anyhow::Result<()> {
        let nowhere = BTreeSet::new();
        match &self.plan.asked.whole {
            Some(Whole::Filesystem(path)) => {
                self.count_owners(&self.selection.besides.nlm);
                self.count_owners(&self.selection.nlm);
                let paths = [path.clone()];
                let job = self.job(IpAddr::from([0, 0, 0, 0]), &[], &nowhere, &paths);
                (Filesystem.release(&job).await).context("unlock_filesystem")?;
                return Ok(());
            }
            Some(Whole::Export(path)) => NfsdNetlink::open()?.unlock_export(path)?,
            None => {}
        }
        self.nlm().await;
        if matches!(self.plan.asked.wanted, Wanted::Client(_)) {
            self.expire()?;
        }
        Ok(())
    }

    /// Calls lockd, one VIP after the other: there is one detour at a time.
    async fn nlm(&mut self) {
        let table = &self.selection.nlm;
        let hosts = table.active_hosts().into_iter();
        let vips: BTreeSet<IpAddr> = hosts.map(|id| table.host(id).key.vip).collect();
        let whole = matches!(self.plan.asked.wanted, Wanted::Client(_));
        if whole {
            self.count_owners(table);
        }
        let netns = self.watch.netns();
        let nowhere = BTreeSet::new();
        for vip in vips {
            let targets = match whole {
                true => targets(table, vip, netns),
                false => targets_one_by_one(table, vip, netns),
            };
            let counted = targets.iter().map(|t| t.waiting.len() + t.held.len());
            self.ours.entry(vip).or_default().calls += counted.sum::<usize>() as u64;
            let job = self.job(vip, &targets, &nowhere, &[]);
            let released = match whole {
                true => FreeAll.release(&job).await,
                false => FreeAll.give_up_named(&job).await,
            };
            match released {
                Ok(report) => {
                    let failed = report.hosts.into_iter().filter(|one| one.outcome.is_err());
                    self.failed.extend(failed);
                }
                Err(error) => self.blocker(vip, &error),
            }
        }
    }

    fn job<'b>(
        &'b self,
        vip: IpAddr,
        targets: &'b [Target],
        elsewhere: &'b BTreeSet<IpAddr>,
        filesystems: &'b [PathBuf],
    ) -> Job<'b> {
        Job {
            vip,
            netns: self.watch.netns(),
            targets,
            elsewhere,
            filesystems,
            turn: self.turn,
            deadline: self.plan.deadline,
        }
    }

    fn blocker(&mut self, vip: IpAddr, error: &release::Error) {
        self.blockers
            .push(format!("through {vip}: {}", chain(error)));
    }

    /// Number of owners in the table whose locks lockd drops, by VIP.
    fn count_owners(&mut self, table: &LockTable) {
        let owners: BTreeSet<_> = (table.locks.iter())
            .map(|lock| (lock.host, lock.file, lock.svid))
            .collect();
        for (host, _, _) in owners {
            self.ours
                .entry(table.host(host).key.vip)
                .or_default()
                .owners += 1;
        }
    }

    fn expire(&mut self) -> anyhow::Result<()> {
        if self.selection.nfs4.clients.is_empty() {
            return Ok(());
        }
        let clients = Clients::open()?.ok_or_else(|| anyhow!("nfsd is gone"))?;
        for client in &self.selection.nfs4.clients {
            let path = clients.path(client.number).join("ctl");
            if let Err(error) = clients.expire(client.number) {
                (self.blockers).push(format!("`expire` written to {}: {error}", path.display()));
            }
        }
        Ok(())
    }
}

/// Waits until no request waits for the selection's locks any more, or lockd's time to grant them is
/// over.
pub(super) async fn wait_for_grants(
    watch: &mut Watch,
    base: &Looked,
    selection: &Selection,
    only: Option<IpAddr>,
) -> anyhow::Result<()> {
    let gone = items(&selection.nlm);
    let released = proof::released(gone.keys(), [].iter());
    let behind = |table: &LockTable| -> usize {
        let waits = |waiter: &&Waiter| {
            let file = table.file(waiter.file);
            let file = (file.major, file.minor, file.ino);
            !waiter.granted && proof::overlaps(&released, file, waiter.range)
        };
        table.waiters.iter().filter(waits).count()
    };
    let until = Instant::now() + GRANTS;
    let mut left = behind(&base.ours);
    while left > 0 && Instant::now() < until {
        tokio::time::sleep(POLL_INTERVAL).await;
        left = behind(&watch.snapshot(only)?.table);
    }
    Ok(())
}
