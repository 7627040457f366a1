//! `nlmfo cleanup`: remove every trace of ours from the kernel.

use std::fmt::Write;

use anyhow::Context;
use serde::Serialize;

use super::require_root;
use crate::cli::CleanupArgs;
use crate::exit::{Exit, Failure};
use crate::failover::exclusive::Exclusive;
use crate::grace::leftovers;
use crate::output;
use crate::release::route::{self, Removed};

/// The JSON of `nlmfo cleanup`.
#[derive(Serialize)]
struct Cleaned {
    schema: &'static str,
    removed: Removed,
    /// Pins and filters of the grace gate.
    gate: usize,
}

pub fn run(args: &CleanupArgs) -> Result<Exit, Failure> {
    require_root()?;
    // Of the probes, only the grace gate's outlive their process. A release's routes can
    // be left behind too, and one under way still needs them.
    let _exclusive = Exclusive::take().map_err(|error| Failure::new(Exit::CouldNotRun, error))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime")?;
    let removed = runtime
        .block_on(route::cleanup())
        .context("removing nlmfo's routing rules")?;
    let gate = runtime.block_on(leftovers::cleanup())?;
    if args.json {
        let cleaned = Cleaned {
            schema: "nlmfo.cleanup/1",
            removed,
            gate,
        };
        output::report_json(None, &cleaned);
        return Ok(Exit::Done);
    }
    output::report(None, |out| {
        if !removed.is_nothing() {
            writeln!(
                out,
                "removed {} routing rules, {} routes and {} devices that a killed nlmfo had left",
                removed.rules, removed.routes, removed.devices
            )?;
        }
        if gate > 0 {
            writeln!(
                out,
                "removed the grace gate: {gate} pinned objects and filters"
            )?;
        }
        if removed.is_nothing() && gate == 0 {
            writeln!(out, "nothing of nlmfo's was left in the kernel")?;
        }
        Ok(())
    });
    Ok(Exit::Done)
}
