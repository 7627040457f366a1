//! The client book's part in a failover: whoever holds locks through a VIP is noted before
//! they are released, and the node that takes the VIP over takes its book over too.

use std::net::IpAddr;

use crate::kernel::netns;
use crate::notify::book::writer::Writer;
use crate::notify::book::{self, BookError, Client};
use crate::notify::state_dir::StateDir;
use crate::observe::table::LockTable;

/// Notes whom `held` names as clients of a VIP that is about to be released. If the book
/// is another node's, it becomes ours only if it was forgotten there: the VIP is here,
/// and locks are held through it.
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

/// Makes a VIP's book this node's; who has it from now on notes its clients.
pub fn take_over(state: &StateDir, vip: IpAddr) -> Result<Writer, BookError> {
    Writer::take_over(state, vip, &netns::node())
}

/// Those who hold something, each host once.
pub fn clients(held: &LockTable) -> Vec<Client> {
    let now = book::now();
    let active = held.active_hosts().into_iter();
    active.map(|id| Client::seen(held.host(id), now)).collect()
}
