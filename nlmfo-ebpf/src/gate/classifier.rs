//! The gate itself, on the ingress of every device: what may go to lockd as it is,
//! what is rewritten on its way, and what is not let through.
//!
//! It fails closed. While a window is open for a VIP, what cannot be followed is
//! dropped, or its connection is closed: TCP sends again, clients connect again.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, bpf_sock_tuple};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use nlmfo_common::Addr;
use nlmfo_common::gate::{Connection, Flow, Gated, OWN_MARK};
use nlmfo_common::stream::Place;

use crate::calls::{self, Outcome, Work};
use crate::maps::{BUSY, CONNECTIONS, FRESH, GATE, GATED, WINDOWS};
use crate::packet::{Packet, Skb, TCP};

const ETHERNET_HEADER: u32 = 14;

/// Let the packet through, and other filters see it.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;
const URG: u8 = 0x20;

/// States of a socket (include/net/tcp_states.h).
const TIME_WAIT: u32 = 6;
const CLOSE: u32 = 7;
const LISTEN: u32 = 10;
const NEW_SYN_RECV: u32 = 12;

// hook: tc ingress of a device with an Ethernet header; clsact before 6.6, then tcx
// seen: 6.1 6.12 7.3
// context: softirq
#[classifier]
pub fn gate_ether(ctx: TcContext) -> i32 {
    gate(Skb(ctx.as_ptr().cast()), ETHERNET_HEADER)
}

// hook: tc ingress of a device without a link header; clsact before 6.6, then tcx
// seen: 6.1 6.12 7.3
// context: softirq
#[classifier]
pub fn gate_raw(ctx: TcContext) -> i32 {
    gate(Skb(ctx.as_ptr().cast()), 0)
}

#[inline(always)]
fn gate(skb: Skb, l3: u32) -> i32 {
    let Some(gate) = GATE.get(0) else { return PASS };
    if gate.until == 0 {
        return PASS;
    }
    // Most packets are nobody's business of ours: that is found out before anything
    // that costs more.
    let Some(packet) = Packet::of(skb, l3) else {
        return PASS;
    };
    let Some(work) = Work::of_this_cpu() else {
        return DROP;
    };
    if !packet.flow(&mut work.flow) {
        return DROP;
    }
    if skb.mark() == OWN_MARK {
        return PASS;
    }
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: an element of our map; its fields are read once each.
    let (opened, until, fenced_until) = match unsafe { WINDOWS.get(work.flow.vip) } {
        Some(window) => (window.opened, window.until, window.fenced_until),
        None => (0, 0, 0),
    };
    if now < fenced_until {
        count(&work.flow.vip, |gated| gated.fenced += 1);
        return DROP;
    }
    let is_in_window = now < until;
    if !is_in_window && now >= gate.scope_until {
        return PASS;
    }
    if !packet.is_readable() {
        return drop(work);
    }
    work.begin(&packet, now);
    work.is_in_window = is_in_window as u32;
    work.opened = match is_in_window {
        true => opened,
        false => gate.scope_opened,
    };
    work.is_in_scope = (now < gate.scope_until) as u32;
    work.net = gate.net;
    match packet.proto {
        TCP => segment(&packet, work),
        _ => datagram(&packet, work),
    }
}

#[inline(always)]
fn drop(work: &Work) -> i32 {
    count(&work.flow.vip, |gated| gated.dropped += 1);
    DROP
}

/// Counts for the VIP.
#[inline(always)]
pub fn count(vip: &Addr, add: impl FnOnce(&mut Gated)) {
    let known = GATED.get_ptr_mut(vip).or_else(|| {
        // BPF_NOEXIST
        let _ = GATED.insert(vip, Gated::default(), 1);
        GATED.get_ptr_mut(vip)
    });
    if let Some(gated) = known {
        // SAFETY: this CPU's value, and softirqs do not nest.
        add(unsafe { &mut *gated });
    }
}

#[inline(always)]
fn datagram(packet: &Packet, work: &mut Work) -> i32 {
    const HEADER: u32 = 8;
    work.calls.begin_datagram(packet.l4 + HEADER, packet.end);
    match calls::read_datagram(packet.skb, work) {
        Outcome::PASS => PASS,
        _ => drop(work),
    }
}

#[inline(always)]
fn segment(packet: &Packet, work: &mut Work) -> i32 {
    let Some(header) = packet.skb.load::<20>(packet.l4) else {
        return drop(work);
    };
    let seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
    let flags = header[13];
    let payload = packet.l4 + (header[12] >> 4) as u32 * 4;
    let len = packet.end.saturating_sub(payload);
    if flags & SYN != 0 {
        // Data in a SYN has no place in the stream yet; the client sends it again.
        if flags & ACK != 0 || len > 0 {
            return drop(work);
        }
        begin(packet, work, seq);
        return PASS;
    }
    if len == 0 || payload < packet.l4 + 20 {
        return PASS;
    }
    let Some(connection) = CONNECTIONS.get_ptr_mut(work.flow) else {
        return close(packet, work);
    };
    // SAFETY: an element of our map, which only the CPU that has it in `BUSY` changes.
    let connection = unsafe { &mut *connection };
    // Urgent data is taken out of the stream by the receiver.
    if connection.opened != work.opened || flags & URG != 0 {
        return close(packet, work);
    }
    // BPF_NOEXIST: another CPU may be at a segment of this connection.
    if BUSY.insert(work.flow, 0, 1).is_err() {
        return drop(work);
    }
    let action = follow(packet, work, connection, seq, payload, len);
    let _ = BUSY.remove(work.flow);
    action
}

#[inline(always)]
fn follow(
    packet: &Packet,
    work: &mut Work,
    connection: &mut Connection,
    seq: u32,
    payload: u32,
    len: u32,
) -> i32 {
    if connection.stream.calls.is_lost() {
        return close(packet, work);
    }
    let seen = match connection.stream.place(seq, len) {
        Place::Ahead => return drop(work),
        Place::Forgotten => return close(packet, work),
        Place::Seen(seen) => seen,
    };
    work.first = seq.wrapping_sub(payload);
    if seen > 0 {
        work.seen = seen;
        work.seq = seq;
        if calls::repeat(packet.skb, work, connection) != Outcome::PASS {
            return drop(work);
        }
    }
    if seen == len {
        return PASS;
    }
    connection.before = connection.stream;
    connection.stream.calls.at = payload + seen;
    connection.stream.calls.end = packet.end;
    match calls::read_stream(packet.skb, work, connection) {
        Outcome::PASS => {
            connection.stream.pass(seq, len);
            PASS
        }
        Outcome::DROP => {
            connection.stream.take_back(&connection.before);
            drop(work)
        }
        _ => {
            connection.stream.calls.lose();
            close(packet, work)
        }
    }
}

/// Follows a connection from its first segment on, unless that is a forged one: a
/// live connection does not begin again.
#[inline(always)]
fn begin(packet: &Packet, work: &Work, seq: u32) {
    match state_of_socket(packet, work) {
        None | Some(LISTEN | TIME_WAIT | CLOSE) => {}
        // A SYN that is sent again.
        Some(NEW_SYN_RECV) => {
            if let Some(connection) = CONNECTIONS.get_ptr(work.flow)
                // SAFETY: an element of our map, an aligned u64.
                && unsafe { (*connection).opened } == work.opened
            {
                return;
            }
        }
        Some(_) => return,
    }
    let Some(fresh) = FRESH.get(0) else { return };
    // If there is no room, the first data closes the connection.
    let _ = CONNECTIONS.insert(work.flow, fresh, 0);
    if let Some(connection) = CONNECTIONS.get_ptr_mut(work.flow) {
        // SAFETY: an element of our map; nothing is sent on it yet.
        let connection = unsafe { &mut *connection };
        connection.stream.begin(seq);
        connection.opened = work.opened;
    }
}

/// The state of the socket that TCP will find for the segment.
#[inline(always)]
fn state_of_socket(packet: &Packet, work: &Work) -> Option<u32> {
    let Flow {
        client,
        vip,
        client_port,
        server_port,
        ..
    } = work.flow;
    let ports = [client_port.to_be_bytes(), server_port.to_be_bytes()];
    let mut tuple = [0u8; 36];
    // `struct bpf_sock_tuple`: both addresses, both ports, without a gap.
    let is_ipv4 = matches!(client.0, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, ..]);
    let len = if is_ipv4 {
        tuple[..4].copy_from_slice(&client.0[12..]);
        tuple[4..8].copy_from_slice(&vip.0[12..]);
        tuple[8..12].copy_from_slice(ports.as_flattened());
        12
    } else {
        tuple[..16].copy_from_slice(&client.0);
        tuple[16..32].copy_from_slice(&vip.0);
        tuple[32..36].copy_from_slice(ports.as_flattened());
        36
    };
    const CURRENT_NETNS: u64 = u64::MAX;
    // SAFETY: the tuple has 36 bytes; what is found is released.
    unsafe {
        let tuple = tuple.as_mut_ptr().cast::<bpf_sock_tuple>();
        let socket = bpf_skc_lookup_tcp(packet.skb.0.cast(), tuple, len, CURRENT_NETNS, 0);
        if socket.is_null() {
            return None;
        }
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        Some(state)
    }
}

/// Closes a connection that cannot be followed: the server's end with this segment if
/// it still has one, and the client's end when the server answers the next segment,
/// which belongs to no connection, with a reset of its own.
#[inline(always)]
fn close(packet: &Packet, work: &Work) -> i32 {
    count(&work.flow.vip, |gated| gated.closed += 1);
    match state_of_socket(packet, work) {
        None | Some(LISTEN | TIME_WAIT | CLOSE) => PASS,
        Some(_) if packet.skb.reset(packet.l4) => PASS,
        Some(_) => DROP,
    }
}
