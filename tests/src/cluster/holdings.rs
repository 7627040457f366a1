//! Locks of several clients through one VIP, and who watches over them: a thief, a user of
//! another VIP, and what the tool and the kernel show.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Node;
use super::service::Service;
use crate::emulation::UNNOTICED;
use crate::guest::busy::{Busy, SLOW_PACE, Wanted};
use crate::guest::client::HeldLock;
use crate::guest::kernel_log;
use crate::guest::known::{Known, ensure_kernel_holds, ensure_same};
use crate::guest::lab::MountedClient;
use crate::guest::locker::{Mode, Range};
use crate::guest::report;
use crate::guest::tool::exit;

/// The locks of each client through a VIP: file, range, mode. Readers share; the others
/// keep to a range or a file of their own.
fn locks_of(client: u64) -> [(String, Range, Mode); 4] {
    [
        ("shared".into(), Range::new(0, 100), Mode::Read),
        ("shared".into(), Range::new(1000 * client, 10), Mode::Write),
        (format!("own-{client}"), Range::WHOLE, Mode::Write),
        (format!("tail-{client}"), Range::new(1 << 33, 0), Mode::Read),
    ]
}

/// Locks through one VIP, each with an owner of its own.
pub struct Holdings {
    held: Vec<HeldLock>,
    files: Vec<(String, Range)>,
    /// As the tool shows them, the same on every node.
    pub known: BTreeSet<Known>,
}

impl Holdings {
    /// Takes several locks for each client through its mount of this number, on `node`,
    /// where the service is.
    pub fn take(
        clients: &[MountedClient],
        mount: usize,
        service: &Service,
        node: &Node,
    ) -> Result<Holdings> {
        let mut held = Vec::new();
        let mut files = Vec::new();
        for (number, owner) in (1..).zip(clients) {
            for (file, range, mode) in locks_of(number) {
                let lock = (owner.client).lock(&owner.mounts[mount], &file, range, mode)?;
                held.push(lock);
                files.push((file, range));
            }
        }
        let known = shown(node, service.vip)?;
        ensure!(
            known.len() == held.len(),
            "{} locks were taken, the tool shows {known:#?}",
            held.len()
        );
        Ok(Holdings { held, files, known })
    }

    /// A process that asks for every one of the locks all the time, to write, through its
    /// mount of this number.
    pub fn robbed_by(&self, thief: &MountedClient, mount: usize) -> Result<Busy> {
        thief.client.busy(&self.wanted_by(thief, mount))
    }

    /// The same about once a second, beside minutes of a cluster manager's work.
    pub fn slowly_robbed_by(&self, thief: &MountedClient, mount: usize) -> Result<Busy> {
        thief
            .client
            .busy_at(SLOW_PACE, &self.wanted_by(thief, mount))
    }

    fn wanted_by(&self, thief: &MountedClient, mount: usize) -> Vec<Wanted> {
        let wanted = self.files.iter().map(|(file, range)| Wanted {
            file: thief.mounts[mount].path(file),
            range: *range,
            mode: Mode::Write,
        });
        wanted.collect()
    }

    /// All of them are held on `node`, by the tool's word and by the kernel's, and no other.
    pub fn ensure_on(&self, service: &Service, node: &Node) -> Result<()> {
        let now = shown(node, service.vip)?;
        let what = format!("locks through {} on {}", service.vip, node.name());
        ensure_same(&what, &self.known, &now)?;
        ensure_kernel_holds(&service.locks(node)?, &self.known)
    }

    /// Every owner gives its lock up, and nothing is left: they alone can. Until now their
    /// kernels believed in all of them.
    pub fn give_up(self, service: &Service, node: &Node) -> Result<()> {
        kernel_log::ensure_no_reclaim_refused()?;
        for lock in self.held {
            lock.release()?;
        }
        let left = shown(node, service.vip)?;
        ensure!(left.is_empty(), "given up by all, yet held: {left:#?}");
        ensure_kernel_holds(&service.locks(node)?, [])
    }
}

/// What the tool shows as held through the VIP on this node.
pub fn shown(node: &Node, vip: IpAddr) -> Result<BTreeSet<Known>> {
    let listed = node
        .tool()
        .json(exit::CONFIRMED, &["locks", "--vip", &vip.to_string()])?;
    report::known(&listed, "locks")
}

/// A user of a file of its own.
pub fn user_of(user: &MountedClient, mount: usize, file: &str) -> Result<Busy> {
    user.client.busy(&[Wanted {
        file: user.mounts[mount].path(file),
        range: Range::new(7, 3),
        mode: Mode::Write,
    }])
}

/// The thief has asked for every lock, and got none. Returns how long it waited for an answer at
/// most: for so long the VIP's locks stood still.
pub fn ensure_nothing_stolen(thief: Busy) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for tally in thief.finish()? {
        ensure!(tally.held == 0, "stolen: {tally:?}");
        ensure!(tally.refused > 0, "the thief did not get to ask: {tally:?}");
        slowest = slowest.max(tally.slowest);
    }
    Ok(slowest)
}

/// A user has got every lock that it asked for, in time; returns the longest time.
pub fn ensure_unnoticed(user: Busy) -> Result<Duration> {
    let mut slowest = Duration::ZERO;
    for tally in user.finish()? {
        ensure!(
            tally.held > 0 && tally.refused == 0 && tally.failed.is_empty(),
            "another VIP's user: {tally:?}"
        );
        ensure!(
            tally.slowest <= UNNOTICED,
            "another VIP's user waited too long: {tally:?}"
        );
        slowest = slowest.max(tally.slowest);
    }
    Ok(slowest)
}
