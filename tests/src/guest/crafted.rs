//! Frames built byte by byte, which no socket sends: tags of no VLAN, packets in tunnels, segments
//! that TCP discards.

use std::ffi::CString;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, ensure};
use nix::libc;
use socket2::{Domain, Protocol, Socket, Type};

use super::node::TestNode;

pub const UDP: u8 = 17;
pub const TCP: u8 = 6;
pub const GRE: u8 = 47;

/// Flags of a segment.
pub const SYN: u8 = 0x02;
pub const PUSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

const ETH_P_IP: [u8; 2] = [0x08, 0x00];
/// A tag of 802.1Q with number 0, which is no VLAN's.
const NO_VLAN: [u8; 4] = [0x81, 0x00, 0, 0];

/// A device of a node, to send frames.
pub struct Wire {
    socket: Socket,
    index: i32,
    /// Destination and source address of the frames.
    addresses: [u8; 12],
}

/// A hardware address as /sys has it.
fn hardware(text: &str) -> Result<[u8; 6]> {
    let mut address = [0; 6];
    let mut bytes = text.trim().split(':');
    for byte in &mut address {
        let digits = bytes.next().context("a short hardware address")?;
        *byte = u8::from_str_radix(digits, 16).with_context(|| text.to_owned())?;
    }
    Ok(address)
}

impl Wire {
    /// By `eth0` of `place`, to the device `to` of the root network namespace.
    pub fn new(node: &TestNode, to: &str) -> Result<Wire> {
        let to = hardware(&std::fs::read_to_string(format!(
            "/sys/class/net/{to}/address"
        ))?)?;
        let own = node
            .command("cat")
            .arg("/sys/class/net/eth0/address")
            .output()?;
        // Its /sys may be that of another network namespace, and the switch does not mind.
        let own = hardware(&String::from_utf8_lossy(&own.stdout)).unwrap_or([2, 0, 0, 0, 0, 9]);
        let name = CString::new("eth0")?;
        let (socket, index) = node.within(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
            // SAFETY: a string with its end.
            let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
            Ok((socket, index))
        })?;
        ensure!(index != 0, "no eth0 in {}", node.name());
        let mut addresses = [0; 12];
        addresses[..6].copy_from_slice(&to);
        addresses[6..].copy_from_slice(&own);
        Ok(Wire {
            socket,
            index: index as i32,
            addresses,
        })
    }

    /// Sends an IPv4 packet with that many tags.
    pub fn send(&self, tags: usize, packet: &[u8]) -> Result<()> {
        let tags = NO_VLAN.repeat(tags);
        let frame = [&self.addresses, &tags[..], &ETH_P_IP, packet].concat();
        // SAFETY: integers only; all zeros are a value.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = self.index;
        // SAFETY: the frame and the address live and are as long as is said.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as u32,
            )
        };
        ensure!(
            sent == frame.len() as isize,
            "a frame: {}",
            io::Error::last_os_error()
        );
        Ok(())
    }
}

/// The internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|two| {
        u32::from(u16::from_be_bytes([
            two[0],
            two.get(1).copied().unwrap_or(0),
        ]))
    });
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

pub fn ipv4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Result<Vec<u8>> {
    const HEADER: usize = 20;
    let len = u16::try_from(HEADER + payload.len())?;
    let mut packet = vec![0x45, 0];
    packet.extend(len.to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, protocol, 0, 0]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(payload);
    Ok(packet)
}

/// A datagram without a checksum, as IPv4 allows.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Result<Vec<u8>> {
    let len = u16::try_from(8 + payload.len())?;
    let words = [from, to, len, 0];
    let header: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
    Ok([&header, payload].concat())
}

/// An IPv4 packet in GRE without options.
pub fn gre(packet: &[u8]) -> Vec<u8> {
    [&[0, 0], &ETH_P_IP, packet].concat()
}

/// Why TCP discards a segment.
#[derive(Clone, Copy, Debug)]
pub enum Flaw {
    Checksum,
    /// It acknowledges what was never sent.
    Acknowledgement,
}

/// The next segment of a connection from `from` to `to`, which TCP discards.
pub fn flawed(
    stream: &TcpStream,
    (from, to): (Ipv4Addr, Ipv4Addr),
    payload: &[u8],
    flaw: Flaw,
) -> Result<Vec<u8>> {
    let (seq, mut ack) = position(stream)?;
    if let Flaw::Acknowledgement = flaw {
        ack = ack.wrapping_add(1 << 20);
    }
    let ports = (stream.local_addr()?.port(), stream.peer_addr()?.port());
    let ends = (
        SocketAddrV4::new(from, ports.0),
        SocketAddrV4::new(to, ports.1),
    );
    let mut segment = tcp(ends, PUSH | ACK, (seq, ack), payload)?;
    if let Flaw::Checksum = flaw {
        segment[17] ^= 1;
    }
    ipv4(TCP, from, to, &segment)
}

/// A segment from the first end to the second, with its sequence and acknowledgement number.
pub fn tcp(
    (from, to): (SocketAddrV4, SocketAddrV4),
    flags: u8,
    (seq, ack): (u32, u32),
    payload: &[u8],
) -> Result<Vec<u8>> {
    let mut segment = Vec::new();
    segment.extend(from.port().to_be_bytes());
    segment.extend(to.port().to_be_bytes());
    segment.extend(seq.to_be_bytes());
    segment.extend(ack.to_be_bytes());
    segment.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend(payload);
    let len = u16::try_from(segment.len())?;
    let pseudo = [
        &from.ip().octets()[..],
        &to.ip().octets(),
        &[0, TCP],
        &len.to_be_bytes(),
    ]
    .concat();
    let sum = checksum(&[&pseudo, &segment[..]].concat());
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    Ok(segment)
}

/// The sequence number of the next byte that a connection sends, and that it receives.
fn position(stream: &TcpStream) -> Result<(u32, u32)> {
    /// Without a probe of the peer's window (include/uapi/linux/tcp.h).
    const REPAIR_OFF: i32 = -1;
    const RECEIVE: i32 = 1;
    const SEND: i32 = 2;
    option(stream, libc::TCP_REPAIR, 1)?;
    let queue = |queue| {
        option(stream, libc::TCP_REPAIR_QUEUE, queue)?;
        let mut seq = 0u32;
        let mut len = size_of::<u32>() as u32;
        // SAFETY: the value is as long as is said.
        let code = unsafe {
            libc::getsockopt(
                stream.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_QUEUE_SEQ,
                (&raw mut seq).cast(),
                &raw mut len,
            )
        };
        ensure!(code == 0, "TCP_QUEUE_SEQ: {}", io::Error::last_os_error());
        Ok(seq)
    };
    let both = (queue(SEND)?, queue(RECEIVE)?);
    option(stream, libc::TCP_REPAIR, REPAIR_OFF)?;
    Ok(both)
}

fn option(stream: &TcpStream, name: i32, value: i32) -> Result<()> {
    // SAFETY: the value is as long as is said.
    let code = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            name,
            (&raw const value).cast(),
            size_of::<i32>() as u32,
        )
    };
    ensure!(code == 0, "option {name}: {}", io::Error::last_os_error());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The usual test header for the checksum of RFC 1071.
    #[test]
    fn a_header_has_the_checksum_that_makes_its_sum_zero() {
        let from = Ipv4Addr::new(192, 168, 0, 1);
        let packet = ipv4(UDP, from, Ipv4Addr::new(192, 168, 0, 199), &[1, 2, 3]).unwrap();
        assert_eq!(checksum(&packet[..20]), 0);
        assert_eq!(packet.len(), 23);
        assert_eq!(packet[2..4], [0, 23]);
    }
}
