//! `nlmfo restart`: stop and start the NFS server of this node, and keep its clients' locks.

use std::fmt::Write;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::require_root;
use crate::causes::chain;
use crate::cli::RestartArgs;
use crate::exit::{Exit, Failure};
use crate::failover::interrupted::or_interrupt;
use crate::failover::kept::keep_as;
use crate::failover::watch::observe;
use crate::failover::whole::node::NodeServer;
use crate::failover::whole::report::RestartReport;
use crate::failover::whole::run::{self, Halves, Plan, remains};
use crate::files::lock::{LockFile, Mode};
use crate::notify::config::Config;
use crate::notify::state_dir::StateDir;
use crate::times;
use crate::{interrupt, output, runtime};

/// What is kept: one JSON object in `/run/nlmfo/last-restart.json`.
#[derive(Serialize)]
struct Kept<'a> {
    schema: &'static str,
    /// Since 1970, in seconds.
    at: u64,
    /// The exit status; null while the restart goes on, and if it was killed.
    exit: Option<u8>,
    error: Option<&'a str>,
    report: Option<&'a RestartReport>,
}

pub fn run(args: &RestartArgs) -> Result<Exit, Failure> {
    require_root()?;
    let plan = Plan {
        halves: match (args.record_only, args.stop_only, args.start_only) {
            (true, _, _) => Halves::Record,
            (_, true, _) => Halves::Stop,
            (_, _, true) => Halves::Start,
            _ => Halves::Both,
        },
        state: StateDir::new(&args.state.state_dir),
        config: Config::read(args.names.config.as_deref()).map_err(anyhow::Error::from)?,
        force: args.force,
        deadline: args.deadline,
        moving: None,
    };
    let keep = |exit: Option<Exit>, error: Option<&str>, report: Option<&RestartReport>| {
        let kept = Kept {
            schema: "nlmfo.last-restart/1",
            at: times::now(),
            exit: exit.map(|exit| exit as u8),
            error,
            report,
        };
        keep_as("restart", &kept)
    };
    let work = async {
        let lock = LockFile::named("restart", "restarts the NFS server");
        let lock = lock.map_err(anyhow::Error::from)?;
        // A unit that starts the server runs the other half by itself.
        let taken = lock.take(Mode::Exclusive, Duration::ZERO).await;
        let _alone = taken.map_err(anyhow::Error::from)?;
        // Should this process be killed meanwhile.
        keep(None, None, None);
        let done = work(&plan, args).await;
        if let Err(failure) = &done {
            keep(Some(failure.exit), Some(&chain(&*failure.error)), None);
        }
        done
    };
    let state = "see `nlmfo restart --help` for how to continue";
    let done = runtime::run(or_interrupt(work, &[], state))
        .context("cannot start the asynchronous runtime")?;
    let report = done.map_err(|failure| match interrupt::came() {
        None => failure,
        Some(_) => Failure::new(failure.exit, failure.error.context(remains(&plan.state))),
    })?;
    let exit = report.exit();
    let kept = keep(Some(exit), None, Some(&report));
    interrupt::only_words_are_left(exit as u8);
    match args.json {
        true => output::report_json(kept.as_deref(), &report),
        false => output::report(kept.as_deref(), |out| write!(out, "{report}")),
    }
    Ok(exit)
}

async fn work(plan: &Plan, args: &RestartArgs) -> Result<RestartReport, Failure> {
    let (stop, start) = (args.stop_command.clone(), args.start_command.clone());
    let server = NodeServer::find(&plan.state, stop, start, args.service_deadline).await;
    let server = server.map_err(anyhow::Error::from)?;
    run::run(plan, &server, observe).await
}
