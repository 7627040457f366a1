//! What the kernel holds: snapshots of lockd's locks and nfsd's
//! NFSv4 state, counters per VIP, and the clients
//! as they come.
//!
//! Gauges come from snapshots, counters from probes; no state of ours lives long
//! enough to drift from the kernel's.

pub mod assemble;
pub mod counters;
pub mod describe;
pub mod host;
pub mod lockd_ports;
pub mod lockd_queue;
pub mod monitor;
pub mod programs;
pub mod snapshot;
pub mod states;
pub mod table;
