//! What the kernel holds: snapshots of lockd's locks and counters per VIP.

pub mod host;
