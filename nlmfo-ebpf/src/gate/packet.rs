//! Packets to lockd: where their parts are, and writes that keep their checksums right.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_l4_csum_replace, bpf_skb_load_bytes, bpf_skb_store_bytes};
use nlmfo_common::Addr;
use nlmfo_common::gate::{Flow, OWN_MARK};
use nlmfo_common::nlm_call::Bytes;

use crate::ports::{is_lockds, is_muted};

pub const TCP: u16 = 6;
pub const UDP: u16 = 17;

const ETH_P_IP: u16 = 0x0800;
const ETH_P_IPV6: u16 = 0x86dd;
const ETH_P_8021Q: u16 = 0x8100;
const ETH_P_8021AD: u16 = 0x88a8;

/// The bits of a VLAN tag that are its number.
const VLAN_NUMBER: u16 = 0xfff;

/// Flags of a TCP header.
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;

/// IPv6 extension headers that may precede TCP or UDP.
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;

/// `BPF_F_MARK_MANGLED_0`: a UDP checksum of 0 means none.
const MARK_MANGLED_0: u64 = 1 << 5;

/// The packet's bytes, counted from its link header.
#[derive(Clone, Copy)]
pub struct Skb(pub *mut __sk_buff);

impl Skb {
    #[inline(always)]
    pub fn load<const N: usize>(&self, at: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.load_into(at, &mut bytes).then_some(bytes)
    }

    #[inline(always)]
    fn load_into<const N: usize>(&self, at: u32, into: &mut [u8; N]) -> bool {
        // SAFETY: the destination has N bytes; the helper checks the offset.
        let code =
            unsafe { bpf_skb_load_bytes(self.0.cast(), at, into.as_mut_ptr().cast(), N as u32) };
        code == 0
    }

    #[inline(always)]
    fn store<const N: usize>(&self, at: u32, bytes: &[u8; N]) -> bool {
        // SAFETY: the source has N bytes; the helper checks the offset.
        let code =
            unsafe { bpf_skb_store_bytes(self.0.cast(), at, bytes.as_ptr().cast(), N as u32, 0) };
        code == 0
    }

    /// Whether it is one of nlmfo's own, see [`OWN_MARK`].
    #[inline(always)]
    pub fn is_own(&self) -> bool {
        // SAFETY: the program's context.
        unsafe { (*self.0).mark == OWN_MARK }
    }

    #[inline(always)]
    pub fn priority(&self) -> u32 {
        // SAFETY: the program's context.
        unsafe { (*self.0).priority }
    }

    #[inline(always)]
    pub fn set_priority(&self, priority: u32) {
        // SAFETY: the program's context, which classifiers may write to here.
        unsafe { (*self.0).priority = priority }
    }

    /// Whether it has a VLAN tag: it passes again on the VLAN's device, without the tag. 6.1
    /// removes the tag, but leaves its number.
    #[inline(always)]
    pub fn is_of_vlan(&self) -> bool {
        // SAFETY: the program's context.
        let (has_tag, tag) = unsafe { ((*self.0).vlan_present != 0, (*self.0).vlan_tci) };
        has_tag && tag as u16 & VLAN_NUMBER != 0
    }

    /// Whether it stands for several packets, which the kernel will split.
    #[inline(always)]
    pub fn is_several(&self) -> bool {
        // SAFETY: the program's context.
        unsafe { (*self.0).gso_size != 0 }
    }

    /// Whether its link header addresses this node alone (`PACKET_HOST`).
    #[inline(always)]
    pub fn is_unicast(&self) -> bool {
        // SAFETY: the program's context.
        unsafe { (*self.0).pkt_type == 0 }
    }

    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the program's context.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn protocol(&self) -> u16 {
        // SAFETY: the program's context; the network's byte order in 4 bytes.
        u16::from_be(unsafe { (*self.0).protocol } as u16)
    }

    /// Writes one byte of a TCP or UDP payload over `old`.
    ///
    /// The checksum field changes by as much as the payload, so that `skb->csum`
    /// (`CHECKSUM_COMPLETE`) stays right. With `CHECKSUM_PARTIAL` the helper leaves the field
    /// alone, because it holds only the sum of the pseudo header.
    #[inline(always)]
    pub fn rewrite(&self, proto: u16, l4: u32, at: u32, old: u8, new: u8) -> bool {
        if old == new {
            return true;
        }
        // Sums are of 16-bit words from the start of the L4 header.
        let (from, to) = match (at - l4) & 1 {
            0 => ([old, 0], [new, 0]),
            _ => ([0, old], [0, new]),
        };
        self.store(at, &[new]) && self.fix_checksum(proto, l4, from, to)
    }

    #[inline(always)]
    fn fix_checksum(&self, proto: u16, l4: u32, from: [u8; 2], to: [u8; 2]) -> bool {
        let (field, flags) = match proto {
            TCP => (16, 0),
            _ => (6, MARK_MANGLED_0),
        };
        let (from, to) = (u16::from_ne_bytes(from), u16::from_ne_bytes(to));
        // SAFETY: the helper checks the offset.
        let code = unsafe {
            bpf_l4_csum_replace(self.0.cast(), l4 + field, from as u64, to as u64, flags | 2)
        };
        code == 0
    }

    /// Turns a segment into a reset. If it has the sequence number that the server expects, the
    /// server's end closes, and the client's end at its next segment; otherwise the server
    /// answers with the number that it expects (RFC 5961).
    #[inline(always)]
    pub fn reset(&self, l4: u32) -> bool {
        self.set_flags(l4, |flags| flags & ACK | RST)
    }

    /// Turns a segment to a listener into one that is answered with a reset: its
    /// acknowledgement number may be a SYN cookie, which would open a connection.
    #[inline(always)]
    pub fn refuse(&self, l4: u32) -> bool {
        self.set_flags(l4, |_| SYN | ACK)
    }

    #[inline(always)]
    fn set_flags(&self, l4: u32, change: impl FnOnce(u8) -> u8) -> bool {
        const FLAGS: u32 = 12;
        let Some(old) = self.load::<2>(l4 + FLAGS) else {
            return false;
        };
        let new = [old[0], change(old[1])];
        self.store(l4 + FLAGS, &new) && self.fix_checksum(TCP, l4, old, new)
    }
}

impl Bytes for Skb {
    #[inline(always)]
    fn word(&self, at: u32) -> Option<u32> {
        self.load::<4>(at).map(u32::from_be_bytes)
    }

    #[inline(always)]
    fn byte(&self, at: u32) -> Option<u8> {
        self.load::<1>(at).map(|[byte]| byte)
    }
}

/// A packet that is one of lockd's, or may be; or one to a muted port.
pub struct Packet {
    pub skb: Skb,
    pub proto: u16,
    client_port: u16,
    server_port: u16,
    is_ipv4: bool,
    l3: u32,
    /// Offset of the TCP or UDP header; 0 if the packet cannot be read: a fragment,
    /// or behind extension headers.
    pub l4: u32,
    /// Offset of the end of the IP packet.
    pub end: u32,
}

impl Packet {
    #[inline(always)]
    pub fn is_readable(&self) -> bool {
        self.l4 != 0
    }

    /// The packet, if it is for lockd or for a muted port. `l3` is the offset of its IP header.
    ///
    /// Only the first fragment of a datagram has its ports. It counts as unreadable; if it is
    /// dropped, the datagram is never reassembled.
    #[inline(always)]
    pub fn of(skb: Skb, mut l3: u32) -> Option<Self> {
        let mut protocol = skb.protocol();
        // A second tag with number 0: the kernel strips both.
        if protocol == ETH_P_8021Q || protocol == ETH_P_8021AD {
            let [a, b, c, d] = skb.load::<4>(l3)?;
            if u16::from_be_bytes([a, b]) & VLAN_NUMBER != 0 {
                return None;
            }
            protocol = u16::from_be_bytes([c, d]);
            l3 += 4;
        }
        let packet = Self::parse(skb, protocol, l3)?;
        (packet.is_lockds() || packet.is_muted()).then_some(packet)
    }

    /// Whether it is one of lockd's, or may be.
    #[inline(always)]
    pub fn is_lockds(&self) -> bool {
        let has_ports = self.proto == TCP || self.proto == UDP;
        !has_ports || is_lockds(self.proto, self.server_port)
    }

    /// Whether it is for a muted port.
    #[inline(always)]
    pub fn is_muted(&self) -> bool {
        self.is_readable() && is_muted(self.proto, self.server_port)
    }

    /// The packet as one of lockd's sockets gets it: without a link header.
    #[inline(always)]
    pub fn at_socket(skb: Skb) -> Option<Self> {
        Self::parse(skb, skb.protocol(), 0)
    }

    #[inline(always)]
    fn parse(skb: Skb, protocol: u16, l3: u32) -> Option<Self> {
        match protocol {
            ETH_P_IP => Self::of_ipv4(skb, l3),
            ETH_P_IPV6 => Self::of_ipv6(skb, l3),
            _ => None,
        }
    }

    /// Whether it may carry calls: a datagram, or a segment with data that TCP may accept. True
    /// also if the headers cannot be read.
    #[inline(always)]
    pub fn brings_data(&self) -> bool {
        if !self.is_readable() || self.proto != TCP {
            return true;
        }
        let Some(header) = self.skb.load::<20>(self.l4) else {
            return true;
        };
        let flags = header[13];
        let payload = self.l4 + (header[12] >> 4) as u32 * 4;
        payload < self.end && flags & RST == 0 && flags & (SYN | ACK) != SYN | ACK
    }

    #[inline(always)]
    fn of_ipv4(skb: Skb, l3: u32) -> Option<Self> {
        let header = skb.load::<10>(l3)?;
        let proto = header[9] as u16;
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        if (proto != TCP && proto != UDP) || fragment & 0x1fff != 0 {
            return None;
        }
        let l4 = l3 + (header[0] & 0xf) as u32 * 4;
        let (client_port, server_port) = ports(skb, l4)?;
        let more_fragments = fragment & 0x2000 != 0;
        Some(Packet {
            skb,
            proto,
            client_port,
            server_port,
            is_ipv4: true,
            l3,
            l4: if more_fragments { 0 } else { l4 },
            end: end(skb, l3, u16::from_be_bytes([header[2], header[3]]) as u32),
        })
    }

    #[inline(always)]
    fn of_ipv6(skb: Skb, l3: u32) -> Option<Self> {
        let header = skb.load::<8>(l3)?;
        let len = u16::from_be_bytes([header[4], header[5]]) as u32;
        let mut packet = Packet {
            skb,
            proto: header[6] as u16,
            client_port: 0,
            server_port: 0,
            is_ipv4: false,
            l3,
            l4: 0,
            end: end(skb, l3, if len == 0 { 0 } else { len + 40 }),
        };
        let mut l4 = l3 + 40;
        let mut is_whole = true;
        match header[6] {
            HOP_BY_HOP | ROUTING | AUTHENTICATION | DESTINATION | MOBILITY => return Some(packet),
            FRAGMENT => {
                let fragment = skb.load::<4>(l4)?;
                if u16::from_be_bytes([fragment[2], fragment[3]]) & !7 != 0 {
                    return None;
                }
                is_whole = false;
                packet.proto = fragment[0] as u16;
                l4 += 8;
                if packet.proto != TCP && packet.proto != UDP {
                    return Some(packet);
                }
            }
            _ => {}
        }
        if packet.proto != TCP && packet.proto != UDP {
            return None;
        }
        (packet.client_port, packet.server_port) = ports(skb, l4)?;
        if is_whole {
            packet.l4 = l4;
        }
        Some(packet)
    }

    /// Whether a segment acknowledges anything.
    #[inline(always)]
    pub fn has_ack(&self) -> bool {
        (self.skb.load::<1>(self.l4 + 13)).is_some_and(|[flags]| flags & ACK != 0)
    }

    /// Sets the addresses; false if the IP header is not complete.
    #[inline(always)]
    pub fn flow(&self, flow: &mut Flow) -> bool {
        flow.client_port = self.client_port;
        flow.server_port = self.server_port;
        flow.pad = 0;
        if self.is_ipv4 {
            let Some([a, b, c, d, e, f, g, h]) = self.skb.load::<8>(self.l3 + 12) else {
                return false;
            };
            flow.client = Addr::from_v4([a, b, c, d]);
            flow.vip = Addr::from_v4([e, f, g, h]);
            return true;
        }
        (self.skb.load_into(self.l3 + 8, &mut flow.client.0))
            && self.skb.load_into(self.l3 + 24, &mut flow.vip.0)
    }
}

/// The client's port and the server's.
#[inline(always)]
fn ports(skb: Skb, l4: u32) -> Option<(u16, u16)> {
    let [a, b, c, d] = skb.load::<4>(l4)?;
    Some((u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])))
}

/// The end of the IP packet: by its header, because frames may be padded; by the frame if the
/// header cannot tell (more than 64 KiB), or claims more than there is.
#[inline(always)]
fn end(skb: Skb, l3: u32, len: u32) -> u32 {
    let frame = skb.len();
    let packet = l3 + len;
    if len == 0 || packet > frame {
        frame
    } else {
        packet
    }
}
