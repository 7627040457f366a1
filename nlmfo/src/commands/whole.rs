//! What commands that stop or start the node's NFS server have in common: one runs at a time, and its
//! report is stored before it is printed.

use std::cell::Cell;
use std::fmt::{Display, Write};
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use crate::causes::chain;
use crate::exit::{Exit, Failure};
use crate::failover::interrupted::or_interrupt;
use crate::failover::kept::keep_as;
use crate::failover::whole::run::remains;
use crate::files::lock::{LockFile, Mode};
use crate::notify::state_dir::StateDir;
use crate::{interrupt, output, runtime, times};

/// A command of this kind.
pub(super) struct Kind {
    /// Its report is `/run/nlmfo/last-NAME.json`.
    pub name: &'static str,
    pub schema: &'static str,
    /// What to do if a signal ends it.
    pub if_interrupted: &'static str,
}

/// The stored report: one JSON object.
#[derive(Serialize)]
struct Kept<'a, T> {
    schema: &'static str,
    /// Since 1970, in seconds.
    at: u64,
    /// The exit status; null while the command runs, and if it was killed.
    exit: Option<u8>,
    error: Option<&'a str>,
    report: Option<&'a T>,
}

/// Does the work, unless another such command runs, and shows its report.
pub(super) fn run<T: Display + Serialize>(
    kind: &Kind,
    state: &StateDir,
    json: bool,
    exit: impl Fn(&T) -> Exit,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<Exit, Failure> {
    let keep = |exit: Option<Exit>, error: Option<&str>, report: Option<&T>| {
        let kept = Kept {
            schema: kind.schema,
            at: times::now(),
            exit: exit.map(|exit| exit as u8),
            error,
            report,
        };
        keep_as(kind.name, &kept)
    };
    let begun = Cell::new(false);
    let alone = async {
        let lock = LockFile::named("restart", "restarts the NFS server");
        let lock = lock.map_err(anyhow::Error::from)?;
        // A unit that starts the server runs the other half by itself.
        let taken = lock.take(Mode::Exclusive, Duration::ZERO).await;
        let _alone = taken.map_err(anyhow::Error::from)?;
        // In case this process is killed.
        keep(None, None, None);
        begun.set(true);
        work.await
    };
    let done = runtime::run(or_interrupt(alone, &[], kind.if_interrupted))
        .context("cannot start the asynchronous runtime")?;
    let done = done.map_err(|failure| match interrupt::came() {
        None => failure,
        Some(_) => Failure::new(failure.exit, failure.error.context(remains(state))),
    });
    let report = done.inspect_err(|failure| {
        // Otherwise the stored report is another command's.
        if begun.get() {
            keep(Some(failure.exit), Some(&chain(&*failure.error)), None);
        }
    })?;
    let exit = exit(&report);
    let kept = keep(Some(exit), None, Some(&report));
    interrupt::work_is_done(exit as u8);
    match json {
        true => output::report_json(kept.as_deref(), &report),
        false => output::report(kept.as_deref(), |out| write!(out, "{report}")),
    }
    Ok(exit)
}
