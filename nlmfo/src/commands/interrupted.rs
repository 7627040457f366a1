//! What a signal does to a command that changes the kernel.

use std::future::Future;
use std::net::IpAddr;

use anyhow::{Context, anyhow};

use crate::exit::{Exit, Failure};
use crate::grace::standing;
use crate::interrupt::{self, Interrupts};

/// Does the work, until a signal ends it. Dropping the work takes everything of ours out of
/// the kernel but windows and fences: probes go with their file descriptors, routes with
/// their guard. What stands for `vips` then is said, and `state` before it.
pub async fn or_interrupt<T>(
    work: impl Future<Output = Result<T, Failure>>,
    vips: &[IpAddr],
    state: &str,
) -> Result<T, Failure> {
    let mut interrupts = Interrupts::listen().context("cannot install signal handlers")?;
    let ended = match interrupt::came() {
        // Between two parts of the command.
        Some(_) => None,
        None => tokio::select! {
            done = work => Some(done),
            () = interrupts.next() => None,
        },
    };
    match (ended, interrupt::came()) {
        (Some(Ok(done)), _) => Ok(done),
        // It ended because it was asked to.
        (Some(Err(failure)), None) => Err(failure),
        (_, by) => {
            let by = by.unwrap_or("a signal");
            let standing = standing::words(vips);
            let error = anyhow!("interrupted by {by}; {state}; {standing}; nothing is confirmed");
            Err(Failure::new(Exit::NotConfirmed, error))
        }
    }
}
