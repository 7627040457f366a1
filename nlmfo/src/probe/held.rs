//! What lockd holds on the testbed, to be compared, and everything that a VIP can have.

use std::fmt;
use std::net::IpAddr;

use anyhow::{Context, Result, ensure};

use super::fixture::Fixture;
use super::known::Symptom;
use crate::observe::host::{Host, NlmVersion, Transport};
use crate::observe::table::{self, LockTable, Mode};
use crate::rpc::nlm::Status;
use crate::testbed::range::Range;
use crate::testbed::raw::RawClient;

/// What lockd holds, to be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Host, inode, svid, range, mode.
    pub locks: Vec<(Host, u64, u32, table::Range, Mode)>,
    pub waiters: Vec<(Host, u64, u32, table::Range, Mode)>,
    /// Host, inode.
    pub shares: Vec<(Host, u64)>,
}

impl Held {
    pub fn of(table: &LockTable) -> Held {
        let ino = |file| table.file(file).ino;
        let host = |host| table.host(host).key;
        Held {
            locks: (table.locks.iter())
                .map(|lock| {
                    let owner = (host(lock.host), ino(lock.file), lock.svid);
                    (owner.0, owner.1, owner.2, lock.range, lock.mode)
                })
                .collect(),
            waiters: (table.waiters.iter())
                .filter(|waiter| !waiter.granted)
                .map(|waiter| {
                    let owner = (host(waiter.host), ino(waiter.file), waiter.svid);
                    (owner.0, owner.1, owner.2, waiter.range, waiter.mode)
                })
                .collect(),
            shares: (table.shares.iter())
                .map(|share| (host(share.host), ino(share.file)))
                .collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.locks.is_empty() && self.waiters.is_empty() && self.shares.is_empty()
    }
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        write!(
            f,
            "{}, {} and {}",
            count(self.locks.len(), "lock"),
            count(self.waiters.len(), "waiter"),
            count(self.shares.len(), "share")
        )
    }
}

/// `status` must be `expected`.
pub fn answered(what: &str, status: Status, expected: Status) -> Result<()> {
    ensure!(
        status == expected,
        "{what}: expected {expected:?}, got {status:?}"
    );
    Ok(())
}

/// Everything that a VIP can have: locks of each NLM version and transport, a request
/// that waits for one of them, and a share.
pub struct Holding {
    _clients: Vec<RawClient>,
    /// What lockd holds for the VIP by it.
    pub held: Held,
}

impl Holding {
    pub const LOCKS: usize = 5;

    pub fn take(fixture: &mut Fixture, vip: IpAddr) -> Result<Holding> {
        use NlmVersion::{V1, V3, V4};
        use Transport::{Tcp, Udp};
        let file = fixture.file(vip)?;
        let shared = fixture.file(vip)?;
        let mut clients = Vec::new();
        for (slot, (version, transport)) in [(V1, Udp), (V3, Udp), (V3, Tcp), (V4, Udp), (V4, Tcp)]
            .into_iter()
            .enumerate()
        {
            let mut client = fixture.client(vip, version, transport)?;
            let range = Range::new(10 * slot as u64, 5);
            client.granted(|raw| raw.lock(&file, 7, range, Mode::Write))?;
            clients.push(client);
        }
        let last = clients.last_mut().context("a client")?;
        last.granted(|raw| raw.share(&shared, 1, 0))?;
        let mut waiter = fixture.client(vip, V4, Tcp)?;
        let status = waiter.wait(&file, 8, Range::new(0, 5), Mode::Write)?;
        answered("a LOCK that has to wait", status, Status::Blocked)?;
        clients.push(waiter);
        let held = fixture.held(vip)?;
        if fixture.queues() && held.waiters.is_empty() {
            return Err(Symptom::NotQueued.into());
        }
        ensure!(
            held.locks.len() == Self::LOCKS && held.shares.len() == 1,
            "the server granted {} locks and a share, but its lists show {held}",
            Self::LOCKS
        );
        Ok(Holding {
            _clients: clients,
            held,
        })
    }
}
