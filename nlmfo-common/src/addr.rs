//! Network addresses as both sides of the kernel boundary keep them.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 or IPv6 address in 16 bytes, network byte order; IPv4 is
/// IPv4-mapped (`::ffff:a.b.c.d`), so that one key type serves both families.
/// A link-local address loses its scope: lockd compares addresses alone too.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr(pub [u8; 16]);

impl Addr {
    /// From four bytes in network byte order, as in `sin_addr`.
    pub const fn from_v4(v4: [u8; 4]) -> Self {
        Addr([
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, v4[0], v4[1], v4[2], v4[3],
        ])
    }

    /// The address in its own family: IPv4 if it is IPv4-mapped.
    pub fn ip(self) -> IpAddr {
        Ipv6Addr::from(self.0).to_canonical()
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(v4: Ipv4Addr) -> Self {
        Addr::from_v4(v4.octets())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(v6: Ipv6Addr) -> Self {
        Addr(v6.octets())
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ip().fmt(f)
    }
}

crate::plain!(Addr: 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_the_ipv4_one() {
        let v4: IpAddr = "10.77.0.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:10.77.0.1".parse().unwrap();
        assert_eq!(Addr::from(v4), Addr::from(mapped));
        assert_eq!(Addr::from(mapped).ip(), v4);
    }

    #[test]
    fn ipv6_keeps_its_bytes_in_network_order() {
        let ip: IpAddr = "fd77::1".parse().unwrap();
        assert_eq!(Addr::from(ip).0[..2], [0xfd, 0x77]);
        assert_eq!(Addr::from(ip).ip(), ip);
    }
}
