//! The part that runs as root inside the virtual machine: NFS topologies built
//! with the distribution's own tools, and processes that hold real locks.
//!
//! Everything lives in one kernel. The server is in the root network namespace
//! or in a [`place::Place`] of its own; every client has its own network,
//! mount and UTS namespace, and so its own `rpcbind`, `rpc.statd` and lockd
//! host identity.

pub mod busy;
pub mod churn;
pub mod client;
pub mod command;
pub mod counted;
pub mod gated;
pub mod handles;
pub mod known;
pub mod lab;
pub mod listeners;
pub mod load;
pub mod locker;
pub mod place;
pub mod proc_locks;
pub mod pty;
pub mod raw;
pub mod reboot;
pub mod reclaimers;
pub mod report;
pub mod server;
pub mod tool;
pub mod traces;
pub mod wait;
pub mod wire;
pub mod wired;
