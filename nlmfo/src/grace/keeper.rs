//! The process that stays behind while a window is open: it puts the gate on devices
//! that appear, follows a lockd that is loaded again, takes a fence away when its VIP has left the node, and the gate out of
//! the kernel after the last window's end.
//!
//! It is started before the gate is loaded, by a process that has [`Lock::Gate`], and
//! waits for that: if the loader is killed, the keeper removes what there is of the gate.
//! If the keeper is killed too, the windows hold and end all the same; the next run of
//! `nlmfo` starts another one, or tidies up.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::devices::Monitor;
use super::gate::Gate;
use super::lock::{Lock, TIMEOUT};
use super::{GraceError, leftovers, window};
use crate::causes::chain;
use crate::files::lock::{Held, LockError};
use crate::kernel::{netns, nfsd};

/// The hidden command that runs [`keep`].
pub const COMMAND: &str = "grace-keeper";

/// Longest time between two looks, should word of a device be missed.
const LOOK: Duration = Duration::from_secs(2);

/// The same while lockd is not loaded: when it comes, the gate is to follow at once.
const LOOK_FOR_LOCKD: Duration = Duration::from_millis(100);

/// Starts a keeper for this network namespace; one too many ends by itself. To be called
/// with [`Lock::Gate`] held.
pub fn spawn() -> Result<(), GraceError> {
    let failed = |path: &str, source| GraceError::File {
        path: path.into(),
        source,
    };
    let program = std::env::current_exe().map_err(|error| failed("nlmfo itself", error))?;
    Command::new(&program)
        .arg(COMMAND)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()
        .map(drop)
        .map_err(|source| GraceError::File {
            path: program,
            source,
        })
}

/// Runs until no window is open any more. Returns at once if another one runs.
pub async fn keep() -> Result<(), GraceError> {
    let Some(keeping) = Lock::Keeper.try_take()? else {
        return Ok(());
    };
    let mut monitor = Monitor::start()?;
    loop {
        let lock = match Lock::Gate.take(TIMEOUT).await {
            Err(GraceError::Lock(busy @ LockError::Busy { .. })) => {
                warn!(%busy, "the gate is not looked after");
                continue;
            }
            lock => lock?,
        };
        let Some(mut gate) = Gate::in_force()? else {
            // Whoever was loading it has ended.
            leftovers::remove_partial().await?;
            break release(keeping, lock);
        };
        let mut is_stale = gate.is_of_another_lockd()?;
        // The new one's ports are there when nfsd serves.
        if is_stale && nfsd::runs() {
            match Gate::load_or_take_over().await {
                Ok((followed, _)) => {
                    gate = followed;
                    is_stale = false;
                }
                Err(error) => warn!(error = chain(&error), "the gate does not follow lockd"),
            }
        }
        // One whose registration with rpcbind hung from before the gate was there.
        if !is_stale && let Err(error) = gate.add_ports() {
            warn!(error = chain(&error), "lockd's ports were not looked up");
        }
        let gone = vips_gone(&gate.fenced()?);
        if !gone.is_empty() {
            gate.fence(&gone, 0)?;
        }
        let left = window::left(gate.ends()?, window::now());
        if left.is_zero() {
            leftovers::finish(gate).await?;
            break release(keeping, lock);
        }
        match gate.cover_all().await {
            Ok(coverage) => {
                for device in coverage.uncovered.iter().filter(|device| device.failed) {
                    warn!(device = device.device.name, device.reason, "not covered");
                }
            }
            // The next look may do better.
            Err(error) => warn!(%error, "the devices were not looked through"),
        }
        drop(lock);
        tokio::select! {
            heard = monitor.changed() => if !heard {
                monitor = Monitor::start()?;
            },
            () = sleep(left.min(match is_stale {
                true => LOOK_FOR_LOCKD,
                false => LOOK,
            })) => {}
        }
    }
    Ok(())
}

/// In this order: whoever has the gate's lock next starts a keeper that finds none.
fn release(keeping: Held, lock: Held) {
    drop(keeping);
    drop(lock);
}

/// Those that are no address of this node any more.
fn vips_gone(vips: &[IpAddr]) -> Vec<IpAddr> {
    let is_gone = |vip: &&IpAddr| netns::has_address(**vip).is_ok_and(|has| !has);
    vips.iter().filter(is_gone).copied().collect()
}
