//! The options of `nlmfo doctor`, and those that name another node.

use std::net::IpAddr;

use clap::Args;

use super::values::{host, vip};
use super::{RemoteArgs, StateArgs};

#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Show only this VIP (repeatable) [default: VIPs with NFSv3 locks, a client book or
    /// configured names on this node, and VIPs of configured servers]
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
#[command(mut_arg("rsh", |rsh| rsh.requires("peer")))]
#[command(mut_arg("remote_nlmfo", |nlmfo| nlmfo.requires("peer")))]
pub struct PeerArgs {
    /// Compare this node with HOST
    #[arg(long, value_name = "HOST", value_parser = host)]
    pub peer: Option<String>,
    #[command(flatten)]
    pub remote: RemoteArgs,
}
