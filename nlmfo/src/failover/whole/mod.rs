//! A server that stops and starts as a whole, with all its addresses at once: the node's own
//! over a restart, or one in namespaces of its own between nodes.
//!
//! The kernel's own grace protects what was held: it begins when the server starts. This module adds
//! what the kernel forgets at an orderly stop: who held what. lockd unmonitors every client when it
//! stops, so that statd has no client to notify afterwards.
//!
//! | half | steps |
//! |---|---|
//! | [`stop`] | [`fence`]; record what is held; store the record; stop; prove that nothing is left |
//! | [`start`] | nfsdcld and statd run; start; see grace; lower the fence; bring addresses up; notify; follow the reclaims; end grace once all is back |
//!
//! [`Server`] is how a server stops and starts. Everything else uses the kernel's files of this
//! process's namespaces: for a server with namespaces of its own, enter them first.

pub mod changes;
pub mod coverage;
pub mod delegations;
pub mod fence;
mod filesystems;
pub mod handed;
pub mod identity;
pub mod leases;
mod listed;
pub mod moved;
pub mod node;
pub mod own;
pub mod present;
pub mod report;
mod reserve;
pub mod run;
pub mod server;
mod sm_notify;
pub mod start;
pub mod stop;
pub mod taking;
mod unrecorded;

pub use server::{Clients, NotReady, Server, ServerError};
