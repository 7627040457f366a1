//! The scenarios: one file per capability, one function per claim.

mod bad_days;
mod clients;
mod counters;
mod counters_released;
mod driven;
mod free_all;
mod gate;
mod gate_life;
mod grace;
mod grace_end;
mod last_resorts;
mod locks;
mod names;
mod notify;
mod probe;
mod release;
mod takeover;
mod thousand;
mod topology;
mod two_nodes;
mod watch;
mod watch_unload;

use std::path::PathBuf;

use anyhow::Result;

/// What a scenario may ask about where it runs.
pub struct Context {
    /// The tool under test, inside the virtual machine.
    pub nlmfo: PathBuf,
    /// `uname -r`.
    pub kernel: String,
}

/// How a scenario that did not fail ended.
pub enum End {
    Pass,
    /// Why this kernel or userland cannot show it.
    Unsupported(String),
}

/// A claim about the tool or the lab, shown in a virtual machine of its own.
#[derive(Clone, Copy)]
pub struct Scenario {
    pub name: &'static str,
    /// One sentence: what holds if it passes.
    pub claim: &'static str,
    /// Returns an error if the claim does not hold: what was expected, and
    /// what was seen.
    pub run: fn(&Context) -> Result<End>,
}

/// Every scenario, in the order in which they are listed and run.
pub fn all() -> Vec<Scenario> {
    [on_one_machine(), on_a_cluster()].concat()
}

/// Those that run on the driver of a cluster of two servers (`cluster::Cluster`).
pub fn on_a_cluster() -> Vec<Scenario> {
    [two_nodes::SCENARIOS, driven::SCENARIOS].concat()
}

/// Those that have a machine to themselves.
pub fn on_one_machine() -> Vec<Scenario> {
    [
        topology::SCENARIOS,
        locks::SCENARIOS,
        free_all::SCENARIOS,
        grace::SCENARIOS,
        grace_end::SCENARIOS,
        takeover::SCENARIOS,
        thousand::SCENARIOS,
        notify::SCENARIOS,
        probe::SCENARIOS,
        names::SCENARIOS,
        gate::SCENARIOS,
        gate_life::SCENARIOS,
        release::SCENARIOS,
        last_resorts::SCENARIOS,
        bad_days::SCENARIOS,
        clients::SCENARIOS,
        counters::SCENARIOS,
        counters_released::SCENARIOS,
        watch::SCENARIOS,
        watch_unload::SCENARIOS,
    ]
    .concat()
}
