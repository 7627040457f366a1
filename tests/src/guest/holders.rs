//! Clients of each NFS version that hold locks on a file of their own and on one that they share,
//! and a client that wants what they hold.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nlmfo::observe::host::Transport;

use super::busy::{Busy, Tally, Wanted};
use super::client::{Client, HeldLock, Mount};
use super::command::run;
use super::locker::{Mode, Outcome, Range};
use super::node::TestNode;

/// The file that every client has open, so that nobody has a delegation of it.
const SHARED: &str = "shared";

/// A client that holds a lock on a file of its own and one on the shared file.
struct Holder {
    number: u8,
    client: Client,
    folder: PathBuf,
    locks: Vec<HeldLock>,
}

impl Holder {
    fn range(&self) -> Range {
        Range::new(10 * u64::from(self.number), 5)
    }

    fn own(&self) -> String {
        format!("own-{}", self.number)
    }
}

/// All of them.
pub struct Holders {
    holders: Vec<Holder>,
    thief: Client,
    thief_mounts: Vec<Mount>,
}

impl Holders {
    /// NFSv3 through the first VIP and the third one, 4.0 through the first, 4.1 through the second,
    /// 4.2 through the third; on this bridge.
    pub fn up(bridge: &TestNode, export: &Path, vips: &[IpAddr]) -> Result<Holders> {
        let [one, two, three] = *vips else {
            bail!("three VIPs are needed");
        };
        let mount = |client: &Client, minor, vip| match minor {
            None => client.mount_export(export, vip, Transport::Tcp),
            Some(minor) => client.mount_export_nfs4(export, vip, minor),
        };
        let mut holders = Vec::new();
        for (number, minor, vip) in [
            (1, None, one),
            (2, Some(0), one),
            (3, Some(1), two),
            (4, Some(2), three),
            (5, None, three),
        ] {
            let client = Client::join_bridge(bridge, number)?;
            let mount = mount(&client, minor, vip)?;
            let mut holder = Holder {
                number,
                client,
                folder: mount.path("."),
                locks: Vec::new(),
            };
            for file in [holder.own(), SHARED.to_owned()] {
                let lock = (holder.client).lock(&mount, &file, holder.range(), Mode::Write)?;
                holder.locks.push(lock);
            }
            holders.push(holder);
        }
        let thief = Client::join_bridge(bridge, 9)?;
        // NFSv4 first: its opens make the server recall delegations.
        let thief_mounts = vec![mount(&thief, Some(1), two)?, mount(&thief, None, one)?];
        Ok(Holders {
            holders,
            thief,
            thief_mounts,
        })
    }

    /// Asks for every lock on the shared file all of the time, by NFSv3 and NFSv4.
    pub fn steal(&self) -> Result<Busy> {
        let wanted = self.thief_mounts.iter().flat_map(|mount| {
            self.holders.iter().map(|holder| Wanted {
                file: mount.path(SHARED),
                range: holder.range(),
                mode: Mode::Write,
            })
        });
        self.thief.busy(&wanted.collect::<Vec<_>>())
    }

    /// Every holder locks and unlocks a range of another file all of the time.
    pub fn lock_and_unlock(&self) -> Result<Vec<Busy>> {
        let busy = |holder: &Holder| {
            holder.client.busy(&[Wanted {
                file: holder.folder.join(format!("busy-{}", holder.number)),
                range: holder.range(),
                mode: Mode::Write,
            }])
        };
        self.holders.iter().map(busy).collect()
    }

    /// Other clients can get none of the locks.
    pub fn all_held(&self) -> Result<()> {
        let locker = self.thief.locker()?;
        for holder in &self.holders {
            for file in [SHARED.to_owned(), holder.own()] {
                for mount in &self.thief_mounts {
                    let tested = locker.test(&mount.path(&file), holder.range(), Mode::Write)?;
                    ensure!(
                        tested == Outcome::Refused,
                        "the lock of client {} on {file}: {tested:?}",
                        holder.number
                    );
                }
            }
        }
        Ok(())
    }

    /// Every holder lists the exported directory.
    pub fn list_folder(&self) -> Result<()> {
        for holder in &self.holders {
            let mut list = holder.client.node().command("ls");
            run(list.arg("-l").arg(&holder.folder))?;
        }
        Ok(())
    }

    /// Releases the locks of one holder, which has nothing open any more.
    pub fn drop_holder(&mut self, number: u8) -> Result<()> {
        let at = self.holders.iter().position(|one| one.number == number);
        let holder = self.holders.remove(at.context("no such holder")?);
        holder.locks.into_iter().try_for_each(HeldLock::release)
    }

    /// Every holder releases its locks.
    pub fn release(self) -> Result<()> {
        for holder in self.holders {
            holder.locks.into_iter().try_for_each(HeldLock::release)?;
        }
        Ok(())
    }
}

/// The thief got no lock.
pub fn ensure_no_theft(thief: Busy) -> Result<()> {
    let tallies = thief.finish()?;
    let stolen: Vec<&Tally> = tallies.iter().filter(|tally| tally.held > 0).collect();
    ensure!(stolen.is_empty(), "stolen: {stolen:?}");
    let slowest = tallies.iter().map(|tally| tally.slowest).max();
    eprintln!("the slowest answer to the thief took {slowest:?}");
    Ok(())
}
