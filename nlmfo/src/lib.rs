//! NLM lock failover per virtual server address, with proof from the kernel's
//! own lock lists.

#![warn(missing_docs)]
#![deny(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

pub(crate) mod causes;
pub mod cli;
pub mod commands;
pub(crate) mod exit;
pub(crate) mod failover;
pub(crate) mod files;
pub(crate) mod foreign;
pub mod grace;
pub(crate) mod interrupt;
pub mod kernel;
pub(crate) mod metrics;
pub mod notify;
pub mod observe;
pub mod output;
pub mod probe;
pub mod release;
pub mod rpc;
pub(crate) mod runtime;
pub(crate) mod server;
pub mod testbed;
pub mod ticks;
pub(crate) mod times;
pub mod ui;
