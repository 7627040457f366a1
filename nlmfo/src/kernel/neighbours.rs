//! Tells the neighbours of this node that an address is here now. They may have sent packets to the
//! node that had it before, and Linux continues to do so for half a minute without an announcement.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddrV6};
use std::os::fd::AsRawFd;

use nix::ifaddrs::getifaddrs;
use nix::libc::{AF_PACKET, ARPHRD_ETHER, ETH_P_ARP, sockaddr_ll, socklen_t};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockType, SockaddrLike, sendto, socket,
};
use socket2::{Domain, Protocol, Socket, Type};

use super::netns::ip;

/// An Ethernet address.
type Mac = [u8; 6];

/// Announces an address of this network namespace: a gratuitous ARP request (RFC 5227, section 3)
/// or an unsolicited neighbour advertisement (RFC 4861, section 7.2.6). `false` if it is on no
/// Ethernet interface, so that there is nothing to announce.
///
/// # Errors
///
/// If the interfaces cannot be read, or the packet cannot be sent: without `CAP_NET_RAW`, or while
/// the kernel still looks for duplicates of an IPv6 address.
pub fn announce(address: IpAddr) -> io::Result<bool> {
    let Some((index, mac)) = interface(address.to_canonical())? else {
        return Ok(false);
    };
    match address.to_canonical() {
        IpAddr::V4(address) => announce_v4(address, index, mac),
        IpAddr::V6(address) => announce_v6(address, index, mac),
    }?;
    Ok(true)
}

/// The interface that has the address: its index and its own address.
fn interface(address: IpAddr) -> io::Result<Option<(u32, Mac)>> {
    let all: Vec<_> = getifaddrs().map_err(io::Error::from)?.collect();
    let has_it = |found: &&nix::ifaddrs::InterfaceAddress| {
        let found = found.address.as_ref().and_then(ip);
        found.is_some_and(|found| found.to_canonical() == address)
    };
    let Some(name) = all.iter().find(has_it).map(|found| &found.interface_name) else {
        return Ok(None);
    };
    let links = all.iter().filter(|found| &found.interface_name == name);
    let link = links
        .filter_map(|found| found.address.as_ref()?.as_link_addr())
        .find(|link| link.hatype() == ARPHRD_ETHER);
    Ok(link.and_then(|link| Some((u32::try_from(link.ifindex()).ok()?, link.addr()?))))
}

fn announce_v4(address: Ipv4Addr, index: u32, mac: Mac) -> io::Result<()> {
    // With protocol 0, the socket receives nothing. `sendto` names the protocol to send.
    let socket = socket(
        AddressFamily::Packet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    let everybody = sockaddr_ll {
        sll_family: AF_PACKET as u16,
        sll_protocol: (ETH_P_ARP as u16).to_be(),
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0xff; 8],
    };
    let len = socklen_t::try_from(size_of_val(&everybody)).map_err(io::Error::other)?;
    // SAFETY: the structure is whole and of that length; it is copied.
    let everybody = unsafe { LinkAddr::from_raw((&raw const everybody).cast(), Some(len)) };
    let everybody = everybody.ok_or_else(|| io::Error::other("no link address"))?;
    sendto(
        socket.as_raw_fd(),
        &arp(address, mac),
        &everybody,
        MsgFlags::empty(),
    )?;
    Ok(())
}

/// A request (RFC 826) for the address that it comes from.
fn arp(address: Ipv4Addr, mac: Mac) -> Vec<u8> {
    // Ethernet, IPv4, lengths of their addresses, request.
    let head = [0, 1, 8, 0, 6, 4, 0, 1];
    let (address, nobody) = (address.octets(), [0; 6]);
    [&head[..], &mac, &address, &nobody, &address].concat()
}

fn announce_v6(address: Ipv6Addr, index: u32, mac: Mac) -> io::Result<()> {
    // The kernel fills in the checksum.
    let socket = Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6))?;
    socket.set_multicast_if_v6(index)?;
    // Receivers drop packets with another hop limit: a router has forwarded them.
    socket.set_multicast_hops_v6(255)?;
    socket.bind(&SocketAddrV6::new(address, 0, 0, 0).into())?;
    let all_nodes = SocketAddrV6::new(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1), 0, 0, index);
    socket.send_to(&advertisement(address, mac), &all_nodes.into())?;
    Ok(())
}

/// A neighbour advertisement (RFC 4861, section 4.4) that overrides what is known.
fn advertisement(address: Ipv6Addr, mac: Mac) -> Vec<u8> {
    let head = [136, 0, 0, 0, 0x20, 0, 0, 0];
    // Option: target link-layer address, of one unit of 8 bytes.
    [&head[..], &address.octets(), &[2, 1], &mac].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = [2, 0, 0, 0, 0, 7];

    #[test]
    fn arp_asks_for_its_own_address() {
        let packet = arp(Ipv4Addr::new(192, 0, 2, 1), MAC);
        let expected = [
            0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 7, 192, 0, 2, 1, 0, 0, 0, 0, 0, 0, 192, 0, 2, 1,
        ];
        assert_eq!(packet, expected);
    }

    #[test]
    fn an_advertisement_names_address_and_mac() {
        let address: Ipv6Addr = "2001:db8::1".parse().unwrap();
        let packet = advertisement(address, MAC);
        assert_eq!(packet.len(), 32);
        assert_eq!(packet[..8], [136, 0, 0, 0, 0x20, 0, 0, 0]);
        assert_eq!(packet[8..24], address.octets());
        assert_eq!(packet[24..], [2, 1, 2, 0, 0, 0, 0, 7]);
    }

    #[test]
    fn loopback_is_not_announced() {
        assert!(!announce("127.0.0.1".parse().unwrap()).unwrap());
        assert!(!announce("::1".parse().unwrap()).unwrap());
        // TEST-NET-1, which no node has.
        assert!(!announce("192.0.2.1".parse().unwrap()).unwrap());
    }
}
