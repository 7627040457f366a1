//! `nlmfo cleanup`: remove every trace of ours from the kernel.

use anyhow::Context;
use serde::Serialize;

use super::{print_json, require_root};
use crate::cli::CleanupArgs;
use crate::exit::{Exit, Failure};
use crate::failover::exclusive::Exclusive;
use crate::release::route::{self, Removed};

/// The JSON of `nlmfo cleanup`.
#[derive(Serialize)]
struct Cleaned {
    schema: &'static str,
    removed: Removed,
}

pub fn run(args: &CleanupArgs) -> Result<Exit, Failure> {
    require_root()?;
    // Probes live and die with their process: only a release's routes can be left
    // behind, and one under way still needs them.
    let _exclusive = Exclusive::take().map_err(|error| Failure::new(Exit::CouldNotRun, error))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the asynchronous runtime")?;
    let removed = runtime
        .block_on(route::cleanup())
        .context("removing nlmfo's routing rules")?;
    if args.json {
        print_json(&Cleaned {
            schema: "nlmfo.cleanup/1",
            removed,
        })?;
    } else if removed.is_nothing() {
        println!("nothing of nlmfo's was left in the kernel");
    } else {
        println!(
            "removed {} routing rules, {} routes and {} devices that a killed nlmfo had left",
            removed.rules, removed.routes, removed.devices
        );
    }
    Ok(Exit::Done)
}
