//! A server of the cluster, in its own machine: daemons without an export, and the agent
//! through which the driver gives it work.

use std::net::{IpAddr, Ipv6Addr};
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::unistd::sethostname;

use super::agent;
use crate::guest::command::run;
use crate::guest::node::TestNode;
use crate::guest::server::Daemons;

/// The one cable of a server.
pub const DEVICE: &str = "eth0";

/// Serves until the machine ends.
pub fn serve(name: &str, address: IpAddr) -> Result<()> {
    let IpAddr::V4(address) = address else {
        bail!("{address}: a server's own address is an IPv4 one here");
    };
    run(Command::new("modprobe").args([
        "-a",
        "virtio_net",
        "virtio_blk",
        "sunrpc",
        "lockd",
        "nfsd",
        "nfsv4",
    ]))?;
    sethostname(name).context("sethostname")?;
    let node = TestNode::root();
    let [.., last] = address.octets();
    let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 2, last.into());
    node.ip(&format!(
        "link set lo up\n\
         link set {DEVICE} up\n\
         addr add {address}/16 dev {DEVICE}\n\
         addr add {v6}/64 dev {DEVICE} nodad\n"
    ))?;
    // The neighbours of an address that moves here are told, once it is known to be nobody
    // else's; they would look for it at the other node for a minute.
    node.write(
        &format!("/proc/sys/net/ipv6/conf/{DEVICE}/ndisc_notify"),
        "1",
    )?;
    let _daemons = Daemons::start(&node)?;
    agent::serve()
}
