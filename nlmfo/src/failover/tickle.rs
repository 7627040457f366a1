//! Tells clients that their connections have ended, after a VIP has come to this node.
//!
//! A client that waits for a reply retransmits at growing intervals, up to minutes, and learns only by
//! a retransmission that the connection is gone. If it receives an out-of-window ACK, it replies at once
//! with an ACK of its own (RFC 9293, 3.10.7.4). This node has no such connection and answers with RST,
//! and the client reconnects.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::causes::chain;
use crate::kernel::connections::{self, Connection};
use crate::kernel::netns;
use crate::server::program::run_within;

/// Time between two segments of a connection: a client answers no more than one in 500 ms (Linux,
/// `net.ipv4.tcp_invalid_ratelimit`).
const INTERVAL: Duration = Duration::from_millis(600);

/// Only by then may all neighbours know where the VIP is.
const LASTING: Duration = Duration::from_secs(6);

/// Maximum time to end the connections of one VIP.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Tells the clients of these connections, except those that have connected again.
pub async fn tickle(mut wanted: Vec<Connection>) {
    let until = Instant::now() + LASTING;
    while !wanted.is_empty() && Instant::now() < until {
        if let Err(error) = send_all(&wanted) {
            debug!(
                error = chain(&error),
                "cannot tell clients that connections have ended"
            );
        }
        sleep(INTERVAL).await;
        let vips: BTreeSet<IpAddr> = wanted.iter().map(|one| one.vip).collect();
        let now = connections::established(|vip| vips.contains(&vip)).unwrap_or_default();
        let is_back = |one: &Connection| {
            (now.iter())
                .any(|new| (new.vip, new.port, new.client) == (one.vip, one.port, one.client))
        };
        wanted.retain(|one| !is_back(one));
    }
}

/// Ends this node's own connections to VIPs that it does not have: they were left when the VIPs went
/// away. A client comes back from the same port, and what it sends would reach such a connection,
/// which does not accept it, and not be answered with RST.
pub async fn end_left(vips: &[IpAddr]) {
    let is_away = |vip: &&IpAddr| !netns::has_address(**vip).unwrap_or(true);
    let away: Vec<&IpAddr> = vips.iter().filter(is_away).collect();
    let left = connections::established(|vip| away.contains(&&vip)).unwrap_or_default();
    let vips: BTreeSet<IpAddr> = left.iter().map(|one| one.vip).collect();
    for vip in vips {
        let arguments = ["--kill", "--tcp", "src", &vip.to_string()];
        match run_within("ss", &arguments, KILL_TIMEOUT).await {
            Ok(()) => debug!(%vip, "ended connections of its earlier stay"),
            Err(error) => warn!(
                %vip,
                error = chain(&error),
                "connections of the VIP's earlier stay are left: clients may be blocked for a minute"
            ),
        }
    }
}

fn send_all(wanted: &[Connection]) -> io::Result<()> {
    let vips: BTreeSet<IpAddr> = wanted.iter().map(|one| one.vip).collect();
    for vip in vips {
        let local = SocketAddr::new(vip, 0);
        let socket = Socket::new(Domain::for_address(local), Type::RAW, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.bind(&local.into())?;
        // Received packets are not read: the kernel drops them once the buffer is full.
        for one in wanted.iter().filter(|one| one.vip == vip) {
            let to = SocketAddr::new(one.client, 0);
            // One that cannot be reached does not affect the others.
            let sent = socket.send_to(&segment(one), &to.into());
            debug!(client = %one.client, port = one.client_port, ?sent, "tickled");
        }
    }
    Ok(())
}

/// A TCP header without data: an acknowledgement with sequence number 0.
fn segment(of: &Connection) -> [u8; 20] {
    const ACK: u8 = 0x10;
    let mut header = [0; 20];
    header[0..2].copy_from_slice(&of.port.to_be_bytes());
    header[2..4].copy_from_slice(&of.client_port.to_be_bytes());
    // The header's length in words of four bytes.
    header[12] = 5 << 4;
    header[13] = ACK;
    let sum = checksum(of, &header);
    header[16..18].copy_from_slice(&sum.to_be_bytes());
    header
}

/// The checksum of RFC 9293, 3.1, over the pseudo header of IPv4 or IPv6 (RFC 8200, 8.1).
fn checksum(of: &Connection, header: &[u8; 20]) -> u16 {
    const TCP: u32 = 6;
    let mut sum = TCP + header.len() as u32;
    let mut add = |bytes: &[u8]| {
        for word in bytes.chunks_exact(2) {
            sum += u32::from(u16::from_be_bytes([word[0], word[1]]));
        }
    };
    for address in [of.vip, of.client] {
        match address {
            IpAddr::V4(address) => add(&address.octets()),
            IpAddr::V6(address) => add(&address.octets()),
        }
    }
    add(header);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
