//! The part that runs as root inside the virtual machine: NFS topologies built
//! with the distribution's own tools, and processes that hold real locks.
//!
//! Everything lives in one kernel. The server is in the root network namespace
//! or in a [`node::TestNode`] of its own; every client has its own network,
//! mount and UTS namespace, and so its own `rpcbind`, `rpc.statd` and lockd
//! host identity.

pub use nlmfo::testbed::{command, handles, node, proc_locks, raw, server, wait};

pub mod busy;
pub mod churn;
pub mod client;
pub mod counted;
pub mod crafted;
pub mod daemons;
pub mod gated;
pub mod holders;
pub mod kernel_log;
pub mod known;
pub mod lab;
pub mod listeners;
pub mod load;
pub mod locker;
pub mod pty;
pub mod reboot;
pub mod reclaimers;
pub mod report;
pub mod step;
pub mod stuck;
pub mod sweep;
pub mod systemd;
pub mod tool;
pub mod traces;
pub mod wire;
pub mod wired;
