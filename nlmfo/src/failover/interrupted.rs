//! What a signal does to a command that changes the kernel.

use std::future::Future;
use std::net::IpAddr;

use anyhow::{Context, anyhow};

use crate::exit::{Exit, Failure};
use crate::grace::standing;
use crate::interrupt::{self, Interrupts};

/// Does the work until a signal ends it. Dropping the work removes everything from the kernel
/// except windows and fences: probes with their file descriptors, routes with their guard. The
/// error contains `state` and what remains for `vips`.
pub async fn or_interrupt<T>(
    work: impl Future<Output = Result<T, Failure>>,
    vips: &[IpAddr],
    state: &str,
) -> Result<T, Failure> {
    let mut interrupts = Interrupts::listen().context("cannot install signal handlers")?;
    let ended = match interrupt::came() {
        // A signal between two parts of the command.
        Some(_) => None,
        None => tokio::select! {
            done = work => Some(done),
            () = interrupts.next() => None,
        },
    };
    match (ended, interrupt::came()) {
        (Some(Ok(done)), _) => Ok(done),
        // It ended because of the signal.
        (Some(Err(failure)), None) => Err(failure),
        (_, by) => {
            let by = by.unwrap_or("a signal");
            let standing = standing::words(vips);
            let error = anyhow!("interrupted by {by}; {state}; {standing}; nothing is confirmed");
            Err(Failure::new(Exit::NotConfirmed, error))
        }
    }
}
