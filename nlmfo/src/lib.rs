//! NLM lock failover per virtual server address, with proof from the kernel's
//! own lock lists.

#![deny(clippy::print_stdout, clippy::print_stderr, clippy::disallowed_methods)]

pub mod causes;
pub mod cli;
pub mod commands;
pub mod exit;
pub mod failover;
pub mod files;
pub mod foreign;
pub mod grace;
pub mod interrupt;
pub mod kernel;
pub mod notify;
pub mod observe;
pub mod output;
pub mod probe;
pub mod release;
pub mod rpc;
pub mod runtime;
pub mod testbed;
pub mod ui;
