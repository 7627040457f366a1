//! Time limits of the scenarios, whose machines are emulated and share a host.
//! Code runs ten to thirty times slower than on a real processor, and sometimes not at all for
//! seconds. Scenarios wait for conditions, with [`crate::guest::wait::DEADLINE`], and
//! have no other time limits than these, which only a hang exceeds.

use std::num::NonZero;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

/// One more than there are cores: machines wait for much of their time, clusters for most.
pub fn machines_at_once() -> Result<usize> {
    let cores = thread::available_parallelism().map(NonZero::get);
    Ok(cores.context("the number of cores")? + 1)
}

/// Processors of a machine. One takes a third less of the host's time than two. Two show
/// races: a scenario has them on the first kernel if it runs on several, and with `--full`
/// always. `repeats` says that it is for one kernel, or that the first one has shown it.
pub fn processors(repeats: bool, full: bool) -> u32 {
    match repeats && !full {
        true => 1,
        false => 2,
    }
}

/// Maximum runs of a scenario, in case the emulator fails
/// (`xtask::lab::Outcome::is_emulators_fault`).
pub const TRIES: u32 = 3;

/// A scenario that takes longer hangs. The long form of one kills a command at each of its steps.
pub const fn scenario_deadline(full: bool) -> Duration {
    match full {
        true => Duration::from_hours(4),
        false => Duration::from_mins(10),
    }
}

/// A machine that takes longer to boot or to be reset hangs.
pub const SWEEP_DEADLINE: Duration = Duration::from_mins(2);

/// A whole run of `nlmfo probe`.
pub const PROBE_DEADLINE: Duration = Duration::from_secs(400);

/// Maximum time for the reclaims of running clients; their grace is longer.
pub const RECLAIMED: Duration = Duration::from_secs(20);

/// Maximum time that a client of another VIP waits for an answer. Grace for the whole node would
/// take longer: clients retry every 5 s.
pub const UNNOTICED: Duration = Duration::from_secs(4);
