//! The background process of open windows and fences. It attaches the gate to new devices,
//! follows a lockd that is loaded again, removes a fence or mute when its VIP has left the node,
//! and removes the gate after the last window has ended.
//!
//! A process that holds [`ProcessLock::Gate`] starts it before the gate is loaded. If that loader is
//! killed, the keeper removes what there is of the gate. If the keeper is killed too, the windows still
//! hold and end; the next run of `nlmfo` starts another keeper or cleans up.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::sleep;
use tracing::warn;

use super::devices::Monitor;
use super::gate::Gate;
use super::lock::{ProcessLock, TIMEOUT};
use super::{GraceError, leftovers, window};
use crate::causes::chain;
use crate::files::lock::{Held, LockError};
use crate::kernel::{netns, nfsd};

/// The hidden command that runs [`keep`].
pub const COMMAND: &str = "grace-keeper";

/// Maximum time between two checks, in case an event is missed.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// The same while lockd is not loaded: the gate must follow it at once.
const LOOK_FOR_LOCKD: Duration = Duration::from_millis(100);

/// Starts a keeper for this network namespace; a second instance exits. The caller must hold
/// [`ProcessLock::Gate`].
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

/// Runs until no window is open. Returns at once if another keeper runs.
pub async fn keep() -> Result<(), GraceError> {
    let Some(keeping) = ProcessLock::Keeper.try_take()? else {
        return Ok(());
    };
    let mut monitor = Monitor::start()?;
    let mut ports = BTreeSet::new();
    // Whether lockd has answered what had reached it by the last window's end.
    let mut is_answered = false;
    loop {
        let lock = match ProcessLock::Gate.take(TIMEOUT).await {
            Err(GraceError::Lock(busy @ LockError::Busy { .. })) => {
                warn!(%busy, "the keeper cannot check the gate");
                continue;
            }
            lock => lock?,
        };
        let Some(mut gate) = Gate::in_force()? else {
            // The loader has ended.
            leftovers::remove_partial().await?;
            break release(keeping, lock);
        };
        let mut is_stale = gate.is_of_another_lockd()?;
        // The ports of the new lockd exist once nfsd serves.
        if is_stale && nfsd::runs() {
            match Gate::load_or_take_over().await {
                Ok(followed) => {
                    gate = followed;
                    is_stale = false;
                }
                Err(error) => warn!(error = chain(&error), "the gate could not follow lockd"),
            }
        }
        // Including a port whose registration with rpcbind was already hanging when the gate was
        // loaded.
        if !is_stale && let Err(error) = gate.follow_ports(&mut ports) {
            warn!(error = chain(&error), "could not read lockd's ports");
        }
        let gone = vips_gone(&gate.fenced()?);
        if !gone.is_empty() {
            gate.fence(&gone, 0)?;
        }
        let gone = vips_gone(&gate.muted()?);
        if !gone.is_empty() {
            gate.mute(&gone, 0)?;
        }
        let left = window::left(gate.ends()?, window::now());
        if left.is_zero() && !is_answered {
            // Without the lock: lockd may be blocked.
            drop(lock);
            leftovers::await_answers().await;
            is_answered = true;
            continue;
        }
        if left.is_zero() {
            leftovers::finish(gate).await?;
            break release(keeping, lock);
        }
        is_answered = false;
        cover(&mut gate).await;
        drop(lock);
        tokio::select! {
            heard = monitor.changed() => if !heard {
                monitor = Monitor::start()?;
            },
            () = sleep(left.min(match is_stale {
                true => LOOK_FOR_LOCKD,
                false => POLL_INTERVAL,
            })) => {}
        }
    }
    Ok(())
}

/// Attaches the gate to devices that are new.
async fn cover(gate: &mut Gate) {
    match gate.cover_all().await {
        Ok(coverage) => {
            for device in coverage.uncovered.iter().filter(|device| device.failed) {
                warn!(
                    device = device.device.name,
                    device.reason, "device not covered by the gate"
                );
            }
        }
        // The next check may succeed.
        Err(error) => warn!(%error, "could not list the network devices"),
    }
}

/// In this order: the next holder of the gate's lock starts a keeper that finds none.
fn release(keeping: Held, lock: Held) {
    drop(keeping);
    drop(lock);
}

/// The VIPs that are no longer addresses of this node.
fn vips_gone(vips: &[IpAddr]) -> Vec<IpAddr> {
    let is_gone = |vip: &&IpAddr| netns::has_address(**vip).is_ok_and(|has| !has);
    vips.iter().filter(is_gone).copied().collect()
}
