//! The options of `nlmfo doctor`, and those that name another node.

use std::ffi::OsString;
use std::net::IpAddr;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::StateArgs;
use super::values::{host, not_empty, vip};

/// Show whether this node can give up or take over each VIP now, what would be lost, and what to
/// do. Changes nothing.
///
/// Without --vip, these are the VIPs with NFSv3 locks here, a client book or configured names, and
/// the described servers.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Show this VIP (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    #[command(flatten)]
    pub state: StateArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
    // Last: what follows it gets its heading.
    #[command(flatten)]
    pub peer: PeerArgs,
}

/// Another node to compare with.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Compare with another node")]
pub struct PeerArgs {
    /// Compare with this node
    #[arg(long, value_name = "HOST", value_parser = host)]
    pub peer: Option<String>,
    /// Run commands on HOST with this program and its first arguments; nlmfo appends the host
    /// and one shell command line
    #[arg(
        long,
        value_name = "COMMAND",
        default_value = "ssh -o BatchMode=yes",
        requires = "peer",
        value_parser = OsStringValueParser::new().try_map(not_empty)
    )]
    pub rsh: OsString,
    /// Path of nlmfo on HOST
    #[arg(long, value_name = "PATH", default_value = "nlmfo", requires = "peer")]
    #[arg(value_parser = OsStringValueParser::new().try_map(not_empty))]
    pub remote_nlmfo: OsString,
}
