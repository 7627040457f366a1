//! `nlmfo cleanup`: remove everything that nlmfo left in the kernel.

use std::fmt::Write;

use anyhow::Context;
use serde::Serialize;

use super::interrupted::or_interrupt;
use super::require_root;
use crate::cli::CleanupArgs;
use crate::exit::{Exit, Failure};
use crate::failover::exclusive;
use crate::grace::leftovers;
use crate::grace::lock::TIMEOUT;
use crate::release::Turn;
use crate::release::route::{self, Removed};
use crate::{interrupt, output, runtime};

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
    let work = async {
        let _alone = exclusive::alone().await.map_err(anyhow::Error::from)?;
        // `grace` may open windows at the same time.
        let turn = Turn::take(TIMEOUT).await.map_err(anyhow::Error::from)?;
        let routes = route::cleanup().await;
        let removed = routes.context("cannot remove nlmfo's routing rules")?;
        drop(turn);
        Ok((removed, leftovers::cleanup().await?))
    };
    let work = or_interrupt(work, &[], "some items may remain; run the command again");
    let (removed, gate) = runtime::run(work).context("starting the asynchronous runtime")??;
    interrupt::only_words_are_left(Exit::Done as u8);
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
                "removed {} routing rules, {} routes and {} devices of a killed nlmfo",
                removed.rules, removed.routes, removed.devices
            )?;
        }
        if gate > 0 {
            writeln!(out, "removed the gate: {gate} pinned objects and filters")?;
        }
        if removed.is_nothing() && gate == 0 {
            writeln!(out, "nothing to remove")?;
        }
        Ok(())
    });
    Ok(Exit::Done)
}
