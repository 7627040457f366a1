//! The client book in a failover: clients that hold locks are recorded before their
//! release, and the node that takes over the VIP takes over its book.

use std::net::IpAddr;

use crate::kernel::netns;
use crate::notify::book::writer::Writer;
use crate::notify::book::{BookError, Client};
use crate::notify::state_dir::StateDir;
use crate::observe::table::LockTable;
use crate::times;

/// Adds the clients in `held` to the book of a VIP that is about to be released. A book of
/// another node becomes ours only if the VIP is here and locks are held through it.
pub fn before_release(state: &StateDir, vip: IpAddr, held: &LockTable) -> Result<(), BookError> {
    let clients = clients(held);
    if clients.is_empty() {
        return Ok(());
    }
    let node = netns::node();
    let mut writer = match netns::has_address(vip) {
        Ok(true) => Writer::take_over(state, vip, &node)?,
        _ => Writer::open(state, vip, &node)?,
    };
    writer.note(&clients)
}

/// Makes this node the owner of a VIP's book.
pub fn take_over(state: &StateDir, vip: IpAddr) -> Result<Writer, BookError> {
    Writer::take_over(state, vip, &netns::node())
}

/// The clients that hold something, each host once.
pub fn clients(held: &LockTable) -> Vec<Client> {
    let now = times::now();
    let active = held.active_hosts().into_iter();
    active.map(|id| Client::seen(held.host(id), now)).collect()
}
