//! Clients of two servers of their own, of which one moves.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::Own;
use crate::emulation::UNNOTICED;
use crate::guest::busy::{Busy, Tally, Wanted};
use crate::guest::client::{Client, HeldLock, Mount};
use crate::guest::locker::{Mode, Range};
use crate::guest::node::TestNode;

pub(crate) const VERSIONS: [Option<u8>; 4] = [None, Some(0), Some(1), Some(2)];

pub(super) const HELD: Range = Range { start: 0, len: 10 };
pub(super) const ASKED: Range = Range {
    start: 100,
    len: 10,
};

pub(super) fn wanted(mount: &Mount, file: &str, range: Range) -> Wanted {
    Wanted {
        file: mount.path(file),
        range,
        mode: Mode::Write,
    }
}

/// What a client asks the first server for, all the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asks {
    /// For another lock on the file that it has locked: granted, and unlocked at once.
    OfItsOwn,
    /// For the lock of the next client, which is refused.
    OfTheNext,
}

/// A client that holds a lock of one server, and asks for others of both all the time.
pub(crate) struct User {
    pub number: u8,
    /// Of NFSv4; none is NFSv3.
    pub minor: Option<u8>,
    /// The file that it has locked.
    pub file: String,
    held: HeldLock,
    still: Busy,
    elsewhere: Busy,
    client: Client,
}

/// The longest that a client waited for an answer of either server.
pub(crate) struct Slowest {
    version: String,
    still: Duration,
    pub elsewhere: Duration,
}

/// A client of each version, and one that tries to take their locks.
pub(crate) struct Users {
    pub users: Vec<User>,
    asks: Asks,
    thieves: Vec<Busy>,
    _thief: Client,
}

impl User {
    /// Its version of NFS, as text.
    pub fn version(&self) -> String {
        (self.minor).map_or("3".to_owned(), |minor| format!("4.{minor}"))
    }

    /// Of what it asks the first server for.
    pub fn still(&self) -> Result<Tally> {
        self.still.tallies().pop().context("no result")
    }

    /// The same, through the VIP of the other server.
    pub fn elsewhere(&self) -> Result<Tally> {
        self.elsewhere.tallies().pop().context("no result")
    }
}

/// A client that has its lock, and has not asked for others yet.
type Holder = (u8, Client, HeldLock, [Mount; 2]);

fn holder(bridge: &TestNode, number: u8, minor: Option<u8>, servers: [&Own; 2]) -> Result<Holder> {
    let client = Client::join_bridge(bridge, number)?;
    let [one, other] = servers;
    let mounts = [one.mount(&client, minor)?, other.mount(&client, minor)?];
    let held = client.lock(&mounts[0], &file(number), HELD, Mode::Write)?;
    Ok((number, client, held, mounts))
}

fn file(number: u8) -> String {
    format!("own-{number}")
}

impl Users {
    /// The number of the client that steals.
    pub const THIEF: u8 = 9;

    pub fn start(
        bridge: &TestNode,
        one: &Own,
        other: &Own,
        versions: &[Option<u8>],
        asks: Asks,
    ) -> Result<Users> {
        let holders = ((1..).zip(versions))
            .map(|(number, minor)| holder(bridge, number, *minor, [one, other]))
            .collect::<Result<Vec<_>>>()?;
        let numbers: Vec<u8> = holders.iter().map(|(number, ..)| *number).collect();
        let mut users = Vec::new();
        for ((number, client, held, [here, there]), minor) in holders.into_iter().zip(versions) {
            let own = file(number);
            let asked = match asks {
                Asks::OfItsOwn => wanted(&here, &own, ASKED),
                Asks::OfTheNext => {
                    let next = numbers[usize::from(number) % numbers.len()];
                    wanted(&here, &file(next), HELD)
                }
            };
            users.push(User {
                number,
                minor: *minor,
                held,
                still: client.busy(&[asked])?,
                elsewhere: client.busy(&[wanted(&there, &own, ASKED)])?,
                file: own,
                client,
            });
        }
        let thief = Client::join_bridge(bridge, Self::THIEF)?;
        let mut thieves = Vec::new();
        for minor in [None, Some(1)] {
            let mount = one.mount(&thief, minor)?;
            let all = users.iter().map(|user| wanted(&mount, &user.file, HELD));
            thieves.push(thief.busy(&all.collect::<Vec<_>>())?);
        }
        Ok(Users {
            users,
            asks,
            thieves,
            _thief: thief,
        })
    }

    /// Of the thief's requests: for each user's lock, over each version.
    pub fn thief(&self) -> Vec<Vec<Tally>> {
        self.thieves.iter().map(Busy::tallies).collect()
    }

    /// No lock was lost or stolen, and the other server was as quick as ever.
    pub fn finish_quick(self) -> Result<()> {
        let slowest = self.finish()?;
        ensure!(
            slowest < UNNOTICED,
            "the other server was slow: {slowest:?}"
        );
        Ok(())
    }

    /// No lock was lost or stolen; prints how long each client waited, and returns the longest time
    /// that the other server took to answer.
    pub fn finish(self) -> Result<Duration> {
        let all = self.slowest()?;
        for slowest in &all {
            eprintln!(
                "NFSv{}: stood still {:?}; slowest through the other {:?}",
                slowest.version, slowest.still, slowest.elsewhere
            );
        }
        let elsewhere = all.iter().map(|slowest| slowest.elsewhere).max();
        elsewhere.context("no client")
    }

    /// No lock was lost or stolen; how long each client waited.
    pub fn slowest(self) -> Result<Vec<Slowest>> {
        for thief in self.thieves {
            ensure_refused(&thief.finish()?)?;
        }
        let mut all = Vec::new();
        let mut locks = Vec::new();
        // They stay until their locks are released.
        let mut clients = Vec::new();
        for user in self.users {
            let version = user.version();
            let still = user.still.finish()?;
            match self.asks {
                Asks::OfItsOwn => ensure_held(&still)?,
                Asks::OfTheNext => ensure_refused(&still)?,
            }
            let elsewhere = user.elsewhere.finish()?;
            ensure_held(&elsewhere)?;
            let slowest = |tallies: &[Tally]| tallies.iter().map(|tally| tally.slowest).max();
            all.push(Slowest {
                version,
                still: slowest(&still).context("no result")?,
                elsewhere: slowest(&elsewhere).context("no result")?,
            });
            locks.push(user.held);
            clients.push(user.client);
        }
        // Not before all have asked for the last time.
        locks.into_iter().try_for_each(HeldLock::release)?;
        drop(clients);
        Ok(all)
    }
}

/// Each of these locks was asked for, and never granted.
fn ensure_refused(tallies: &[Tally]) -> Result<()> {
    let mut all = tallies.iter();
    let is_refused =
        |tally: &Tally| tally.held == 0 && tally.failed.is_empty() && tally.refused > 0;
    ensure!(all.all(is_refused), "a lock was stolen: {tallies:?}");
    Ok(())
}

fn ensure_held(tallies: &[Tally]) -> Result<()> {
    let mut all = tallies.iter();
    let is_held = |tally: &Tally| tally.failed.is_empty() && tally.held > 0;
    ensure!(all.all(is_held), "{tallies:?}");
    Ok(())
}
