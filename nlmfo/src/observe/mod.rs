//! What the kernel holds: snapshots of lockd's locks and nfsd's NFSv4 state, counters per VIP, and
//! new clients.
//!
//! Gauges come from snapshots, counters from probes; no state is kept long enough to drift from the
//! kernel's.

pub(crate) mod assemble;
pub(crate) mod behind;
pub mod counters;
pub(crate) mod describe;
pub(crate) mod error;
pub mod host;
pub(crate) mod loader;
pub(crate) mod local;
mod lock_list;
pub mod lockd_ports;
pub(crate) mod lockd_queue;
pub(crate) mod monitor;
pub mod programs;
pub mod snapshot;
pub(crate) mod states;
pub mod table;
pub(crate) mod unlocks;
