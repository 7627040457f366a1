//! The lab itself: real clients' locks arrive in the server's kernel.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

use anyhow::{Result, ensure};

use super::{Context, End, Scenario};
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "topology",
    claim: "two clients' locks through two IPv4 VIPs and one IPv6 VIP are in the server's lock list",
    run: topology,
}];

fn topology(_: &Context) -> Result<End> {
    let lab = Lab::up(&["10.77.0.1", "10.77.0.2", "fd77::1"], 2)?;
    let mut held = Vec::new();
    let mut expected = BTreeSet::new();
    for (c, mounted) in lab.clients.iter().enumerate() {
        for (v, mount) in mounted.mounts.iter().enumerate() {
            let file = format!("c{c}-vip{v}");
            let range = Range::new(10 * v as u64, 10 + c as u64);
            held.push(mounted.client.lock(mount, &file, range, Mode::Write)?);
            let inode = fs::metadata(lab.server.export().join(&file))?.ino();
            expected.insert((inode, range.start, range.end(), true));
        }
    }
    let seen = |lab: &Lab| -> Result<BTreeSet<_>> {
        Ok(lab
            .server
            .locks()?
            .into_iter()
            .map(|lock| (lock.inode, lock.start, lock.end, lock.write))
            .collect())
    };
    let locks = seen(&lab)?;
    ensure!(
        locks == expected,
        "expected {expected:?}, the server holds {locks:?}"
    );

    for lock in held {
        lock.release()?;
    }
    let left = seen(&lab)?;
    ensure!(
        left.is_empty(),
        "released everything, the server holds {left:?}"
    );
    Ok(End::Pass)
}
