//! What it means for time that the scenarios' machines are emulated, and share a host with
//! others: everything that allows for it is here.
//!
//! Code runs ten to thirty times as slowly as on a processor of its own, and at times not at
//! all for seconds. Scenarios wait for conditions, with [`crate::guest::wait::DEADLINE`], and
//! expect no speed but what is below, which only a hang exceeds.

use std::time::Duration;

/// Runs of a scenario, should the emulator fail and not the kernel
/// (`xtask::lab::Outcome::is_emulators_fault`).
pub const TRIES: u32 = 3;

/// After this a scenario hangs.
pub const SCENARIO_DEADLINE: Duration = Duration::from_secs(600);

/// After this a machine that boots or is swept hangs.
pub const SWEEP_DEADLINE: Duration = Duration::from_secs(120);
