//! Who may work at the same time: one run for each VIP, runs of different VIPs side by side.
//!
//! | lock | who has it | for how long |
//! |---|---|---|
//! | the VIP's | a failover of the VIP | its whole run |
//! | the node's, shared | every failover | its whole run |
//! | the node's, alone | `cleanup` and `probe`, which would take the others' state away | their whole run |
//! | [`Turn`](crate::release::turn::Turn) | whoever makes lockd give up locks or waiters | from the look before it to the look after it |
//! | [`Lock::Gate`](crate::grace::lock::Lock) | whoever changes windows or attachments | moments |

use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::files::FileError;
use crate::files::lock::{Held, LockError, LockFile, Mode};
use crate::grace::GraceError;
use crate::kernel::netns;

#[derive(Debug, thiserror::Error)]
pub enum ExclusiveError {
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(transparent)]
    Namespace(#[from] GraceError),
}

impl ExclusiveError {
    /// Whether another run is at it.
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
    /// Waits until nobody else works on any of the VIPs, for that long at most. `vips` are in
    /// order, so that no two runs wait for each other.
    pub async fn begin(vips: &[IpAddr], patience: Duration) -> Result<Self, ExclusiveError> {
        let until = Instant::now() + patience;
        let node = node()?.take(Mode::Shared, patience).await?;
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

    /// Notes at the beginning of a move of a VIP which record was there: one of an earlier
    /// move. A run that goes on with this move finds by [`Working::is_earlier`] whether what is
    /// there has been written since.
    pub fn note_earlier(&self, vip: IpAddr, record: Option<&str>) -> Result<(), FileError> {
        self.held(vip)
            .map_or(Ok(()), |held| held.set_note(record.unwrap_or_default()))
    }

    /// Whether the record was there before the VIP's move that is under way.
    pub fn is_earlier(&self, vip: IpAddr, record: &str) -> Result<bool, FileError> {
        let note = self.held(vip).map(Held::note).transpose()?;
        Ok(note.is_some_and(|note| note == record))
    }

    fn held(&self, vip: IpAddr) -> Option<&Held> {
        let held = self.vips.iter().find(|(held, _)| *held == vip);
        held.map(|(_, held)| held)
    }
}

/// For what takes all of nlmfo's state away: refused while a failover is under way.
pub async fn alone() -> Result<Held, ExclusiveError> {
    Ok(node()?.take(Mode::Exclusive, Duration::ZERO).await?)
}

fn node() -> Result<LockFile, LockError> {
    LockFile::named("node", "is at work")
}

fn file(vip: IpAddr) -> Result<LockFile, ExclusiveError> {
    let cookie = netns::cookie().map_err(GraceError::Namespace)?;
    let name = format!("vip-{cookie}-{vip}");
    Ok(LockFile::named(&name, format!("works on {vip}"))?)
}
