//! What clients of two VIPs lose, and how long they wait, while one of the VIPs moves. Only the clients
//! are observed, so that any cluster manager and any shape of server can be measured.

use std::fmt::{self, Display, Formatter};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::guest::busy::{Busy, Wanted};
use crate::guest::client::{Client, HeldLock, Mount};
use crate::guest::locker::{Mode, Range};
use crate::guest::node::TestNode;

/// What a client holds of a file of its own, and what it asks for all the time.
const HELD: [Range; 2] = [Range { start: 0, len: 10 }, Range { start: 50, len: 10 }];
const ASKED: Range = Range {
    start: 100,
    len: 10,
};

/// The thief's number; the others count from 1.
const THIEF: u8 = 9;

/// How a client mounts what is exported through a VIP: by NFSv3, or by this minor version of NFSv4.
pub type Mounting<'a> = &'a dyn Fn(&Client, Option<u8>) -> Result<Mount>;

/// A client with a mount through the VIP that moves, and one through the other.
struct User {
    client: Client,
    version: Option<u8>,
    mounts: [Mount; 2],
}

/// Clients of both VIPs, and one that tries to take their locks.
pub struct Users {
    users: Vec<User>,
    thief: User,
}

/// What the clients of a version saw through a VIP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub held: usize,
    /// Locks that another client was granted while their owners had them.
    pub lost: usize,
    /// The longest wait for a new lock.
    pub slowest: Duration,
    /// Requests for a new lock that failed.
    pub failed: usize,
}

/// What the clients of a version saw through both VIPs.
pub struct Measured {
    pub version: Option<u8>,
    pub moved: Seen,
    pub other: Seen,
}

/// The locks of a client through a VIP, and who asks for what there.
struct Watched {
    held: Vec<HeldLock>,
    asking: Busy,
    thief: Busy,
}

impl Users {
    /// A client of each of these versions.
    pub fn join(versions: &[Option<u8>], moving: Mounting, other: Mounting) -> Result<Users> {
        let bridge = TestNode::root();
        let join = |number, version| -> Result<User> {
            let client = Client::join_bridge(&bridge, number)?;
            let mounts = [moving(&client, version)?, other(&client, version)?];
            Ok(User {
                client,
                version,
                mounts,
            })
        };
        let users = (1..).zip(versions);
        Ok(Users {
            users: users
                .map(|(number, version)| join(number, *version))
                .collect::<Result<_>>()?,
            thief: join(THIEF, None)?,
        })
    }

    /// Takes locks, does `act`, and returns what the clients saw of it, by version.
    pub fn measure(&self, act: impl FnOnce() -> Result<()>) -> Result<Vec<Measured>> {
        let watched = self
            .users
            .iter()
            .enumerate()
            .map(|(number, user)| Ok([self.watch(number, user, 0)?, self.watch(number, user, 1)?]))
            .collect::<Result<Vec<_>>>()?;
        act()?;
        let mut all: Vec<Measured> = Vec::new();
        for (user, [moved, other]) in self.users.iter().zip(watched) {
            let (moved, other) = (moved.finish()?, other.finish()?);
            match all.iter_mut().find(|one| one.version == user.version) {
                Some(one) => {
                    one.moved.add(moved);
                    one.other.add(other);
                }
                None => all.push(Measured {
                    version: user.version,
                    moved,
                    other,
                }),
            }
        }
        Ok(all)
    }

    fn watch(&self, number: usize, user: &User, side: usize) -> Result<Watched> {
        let file = format!("measured-{number}");
        let mount = &user.mounts[side];
        let held = HELD.map(|range| user.client.lock(mount, &file, range, Mode::Write));
        let wanted = |mount: &Mount, range| Wanted {
            file: mount.path(&file),
            range,
            mode: Mode::Write,
        };
        Ok(Watched {
            held: held.into_iter().collect::<Result<_>>()?,
            asking: user.client.busy(&[wanted(mount, ASKED)])?,
            thief: (self.thief.client)
                .busy(&HELD.map(|range| wanted(&self.thief.mounts[side], range)))?,
        })
    }
}

impl Watched {
    fn finish(self) -> Result<Seen> {
        let mut seen = Seen {
            held: self.held.len(),
            ..Seen::default()
        };
        // Once it gets another answer, the VIP serves, and grace is over.
        for tally in self.asking.finish()? {
            ensure!(tally.held > 0, "a client has not got to ask: {tally:?}");
            seen.slowest = seen.slowest.max(tally.slowest);
            seen.failed += tally.failed.len();
        }
        for tally in self.thief.finish()? {
            ensure!(
                tally.held + tally.refused > 0,
                "the thief has not got to ask: {tally:?}"
            );
            seen.lost += usize::from(tally.held > 0);
        }
        // The owner of a lock that is lost may be told so now.
        for lock in self.held {
            let released = lock.release();
            ensure!(seen.lost > 0 || released.is_ok(), "{released:?}");
        }
        Ok(seen)
    }
}

impl Seen {
    fn add(&mut self, other: Seen) {
        self.held += other.held;
        self.lost += other.lost;
        self.slowest = self.slowest.max(other.slowest);
        self.failed += other.failed;
    }
}

impl Display for Seen {
    fn fmt(&self, out: &mut Formatter) -> fmt::Result {
        let Seen {
            held,
            lost,
            slowest,
            failed,
        } = self;
        let slowest = slowest.as_secs_f64();
        write!(
            out,
            "{lost} of {held} locks lost, stood still {slowest:.1} s"
        )?;
        match failed {
            0 => Ok(()),
            _ => write!(out, ", {failed} requests failed"),
        }
    }
}

impl Display for Measured {
    fn fmt(&self, out: &mut Formatter) -> fmt::Result {
        let version = (self.version).map_or("3".to_owned(), |minor| format!("4.{minor}"));
        let Measured { moved, other, .. } = self;
        write!(
            out,
            "NFSv{version}: {moved}; through the other VIP: {other}"
        )
    }
}
