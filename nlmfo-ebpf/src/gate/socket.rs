//! The socket that TCP finds for a segment, and its sequence state.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated::{
    bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp, bpf_tcp_sock,
};
use nlmfo_common::gate::Flow;
use nlmfo_common::stream::Tcp;
use nlmfo_ebpf::memory::{pointer, read};

use crate::kernel::layout;
use crate::packet::{Packet, TCP};

/// States of a socket (`include/net/tcp_states.h`).
pub const TIME_WAIT: u32 = 6;
pub const CLOSE: u32 = 7;
pub const LISTEN: u32 = 10;
pub const NEW_SYN_RECV: u32 = 12;

/// All zeros if there is none.
#[derive(Clone, Copy, Default)]
pub struct Socket {
    pub state: u32,
    pub tcp: Tcp,
    /// Of a listener: it sent SYN cookies recently and may accept one.
    pub takes_cookies: bool,
}

impl Socket {
    #[inline(always)]
    pub fn of(packet: &Packet, flow: &Flow) -> Self {
        let (mut tuple, len) = tuple(flow, flow.client_port);
        // SAFETY: the tuple has 36 bytes; what is found is released.
        unsafe {
            let tuple = tuple.as_mut_ptr().cast::<bpf_sock_tuple>();
            let found = bpf_skc_lookup_tcp(packet.skb.0.cast(), tuple, len, CURRENT_NETNS, 0);
            if found.is_null() {
                return Socket::default();
            }
            let mut socket = Socket {
                state: (*found).state,
                ..Socket::default()
            };
            match socket.state {
                TIME_WAIT | NEW_SYN_RECV => {}
                LISTEN => socket.takes_cookies = takes_cookies(address(found)),
                _ => {
                    let tcp = bpf_tcp_sock(found.cast());
                    if !tcp.is_null() {
                        let accepted = (*tcp).rcv_nxt;
                        socket.tcp = tcp_of(address(found), accepted);
                    }
                }
            }
            bpf_sk_release(found.cast());
            socket
        }
    }

    /// Whether a connection exists, or this segment creates one.
    #[inline(always)]
    pub fn may_take_data(&self) -> bool {
        self.tcp.is_open || self.state == NEW_SYN_RECV
    }
}

const CURRENT_NETNS: u64 = u64::MAX;

/// `struct bpf_sock_tuple`, which has both addresses and both ports without a gap, and its length.
#[inline(always)]
fn tuple(flow: &Flow, client_port: u16) -> ([u8; 36], u32) {
    let ports = [client_port.to_be_bytes(), flow.server_port.to_be_bytes()];
    let mut tuple = [0u8; 36];
    let is_ipv4 = matches!(
        flow.client.0,
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..]
    );
    let len = if is_ipv4 {
        tuple[..4].copy_from_slice(&flow.client.0[12..]);
        tuple[4..8].copy_from_slice(&flow.vip.0[12..]);
        tuple[8..12].copy_from_slice(ports.as_flattened());
        12
    } else {
        tuple[..16].copy_from_slice(&flow.client.0);
        tuple[16..32].copy_from_slice(&flow.vip.0);
        tuple[32..36].copy_from_slice(ports.as_flattened());
        36
    };
    (tuple, len)
}

/// Whether nothing on this node takes the packet, so that the kernel would refuse it. A connection
/// in `TIME_WAIT` takes none that opens another one.
#[inline(always)]
pub fn is_unheard(packet: &Packet, flow: &Flow) -> bool {
    if packet.proto != TCP {
        return !is_bound(packet, flow);
    }
    match state(packet, flow, flow.client_port) {
        // No client has port 0: only a listener is found.
        TIME_WAIT => state(packet, flow, 0) == 0,
        state => state == 0,
    }
}

/// Whether a socket of UDP takes the datagram. Apart from TCP's: the verifier refuses one read of the
/// state for both kinds of socket.
#[inline(always)]
fn is_bound(packet: &Packet, flow: &Flow) -> bool {
    let (mut tuple, len) = tuple(flow, flow.client_port);
    // SAFETY: the tuple has 36 bytes; what is found is released.
    unsafe {
        let tuple = tuple.as_mut_ptr().cast::<bpf_sock_tuple>();
        let found = bpf_sk_lookup_udp(packet.skb.0.cast(), tuple, len, CURRENT_NETNS, 0);
        if found.is_null() {
            return false;
        }
        bpf_sk_release(found.cast());
    }
    true
}

/// The state of TCP's socket for this client's port, a listener's too; 0 if there is none.
#[inline(always)]
fn state(packet: &Packet, flow: &Flow, client_port: u16) -> u32 {
    let (mut tuple, len) = tuple(flow, client_port);
    // SAFETY: the tuple has 36 bytes; what is found is released.
    unsafe {
        let tuple = tuple.as_mut_ptr().cast::<bpf_sock_tuple>();
        let found = bpf_skc_lookup_tcp(packet.skb.0.cast(), tuple, len, CURRENT_NETNS, 0);
        if found.is_null() {
            return 0;
        }
        let state = (*found).state;
        bpf_sk_release(found.cast());
        state
    }
}

/// A socket's address, as a number.
#[inline(always)]
pub fn address(socket: *mut bpf_sock) -> u64 {
    let held = socket;
    // The verifier forbids arithmetic on a pointer to a socket. A number that a helper reads
    // from our stack is allowed.
    read::<u64>(&raw const held as u64, 0).unwrap_or(0)
}

/// If nothing can be read, the worst case is assumed.
#[inline(always)]
fn tcp_of(socket: u64, accepted: u32) -> Tcp {
    Tcp {
        is_open: true,
        accepted,
        is_busy: pointer(socket, layout!(sock_backlog)) != Ok(0),
        has_gap: pointer(socket, layout!(tcp_gap)) != Ok(0),
    }
}

/// (`tcp_synq_no_recent_overflow`, include/net/tcp.h.)
#[inline(always)]
fn takes_cookies(listener: u64) -> bool {
    read::<u32>(listener, layout!(tcp_cookies)) != Ok(0)
}
