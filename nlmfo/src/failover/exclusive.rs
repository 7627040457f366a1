//! Which runs may overlap: one run per VIP, runs of different VIPs in parallel.
//!
//! | lock | held by | for how long |
//! |---|---|---|
//! | the VIP's | a failover of the VIP | its whole run |
//! | the node's, shared | every failover | its whole run |
//! | the node's, exclusive | `cleanup` and `probe`, which would remove the state of others | their whole run |
//! | [`Turn`](crate::release::turn::Turn) | a run that makes lockd release locks or waiters | from the snapshot before to the snapshot after |
//! | [`ProcessLock::Gate`](crate::grace::lock::ProcessLock) | a run that changes windows or attachments | moments |

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::files::FileError;
use crate::files::lock::{Held, LockError, LockFile, Mode};
use crate::grace::GraceError;
use crate::kernel::netns;

/// Why a run cannot have its VIPs to itself.
#[derive(Debug, thiserror::Error)]
pub enum ExclusiveError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Namespace(#[from] GraceError),
}

impl ExclusiveError {
    /// Whether another run holds the lock.
    pub fn is_busy(&self) -> bool {
        matches!(self, ExclusiveError::Lock(LockError::Busy { .. }))
    }
}

/// Held while this process works on its VIPs.
#[derive(Debug)]
pub struct Working {
    _node: Held,
    vips: Vec<(IpAddr, Held)>,
}

impl Working {
    /// Waits for up to `max_wait` until no other run works on any of the VIPs. `vips` are sorted,
    /// so that two runs never wait for each other.
    pub async fn begin(vips: &[IpAddr], max_wait: Duration) -> Result<Self, ExclusiveError> {
        let until = Instant::now() + max_wait;
        let node = node()?.take(Mode::Shared, max_wait).await?;
        let mut held = Vec::new();
        for &vip in vips {
            let rest = until.saturating_duration_since(Instant::now());
            held.push((vip, file(vip)?.take(Mode::Exclusive, rest).await?));
        }
        Ok(Working {
            _node: node,
            vips: held,
        })
    }

    /// Remembers, when a move of a VIP starts, the record of an earlier move. A run that
    /// continues this move uses [`Working::is_earlier`] to tell whether the record is newer.
    pub fn note_earlier(&self, vip: IpAddr, record: Option<&str>) -> Result<(), FileError> {
        self.held(vip)
            .map_or(Ok(()), |held| held.set_note(record.unwrap_or_default()))
    }

    /// Whether the record is older than the current move of the VIP.
    pub fn is_earlier(&self, vip: IpAddr, record: &str) -> Result<bool, FileError> {
        let note = self.held(vip).map(Held::note).transpose()?;
        Ok(note.is_some_and(|note| note == record))
    }

    fn held(&self, vip: IpAddr) -> Option<&Held> {
        let held = self.vips.iter().find(|(held, _)| *held == vip);
        held.map(|(_, held)| held)
    }
}

/// For commands that remove all of nlmfo's state: refused while a failover runs.
pub async fn alone() -> Result<Held, ExclusiveError> {
    Ok(node()?.take(Mode::Exclusive, Duration::ZERO).await?)
}

fn node() -> Result<LockFile, LockError> {
    LockFile::named("node", "is running")
}

fn file(vip: IpAddr) -> Result<LockFile, ExclusiveError> {
    let cookie = netns::cookie().map_err(GraceError::Namespace)?;
    let name = format!("vip-{cookie}-{vip}");
    Ok(LockFile::named(&name, format!("is working on {vip}"))?)
}
