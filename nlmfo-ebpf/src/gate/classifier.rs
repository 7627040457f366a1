//! The gate, on the ingress of every device: it passes, rewrites or drops packets to lockd.
//!
//! It fails closed. While a window is open for a VIP, a packet that cannot be parsed is dropped
//! or its connection is closed; TCP retransmits, and clients connect again.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use nlmfo_common::gate::{Connection, Flow, decided_priority};
use nlmfo_common::stream::Place;

use crate::calls::{self, Outcome, WORK, Work};
use crate::maps::{BUSY, CONNECTIONS, FRESH, GATE, WINDOWS, count};
use crate::packet::{ACK, Packet, SYN, Skb, TCP, URG};
use crate::socket::{CLOSE, LISTEN, NEW_SYN_RECV, Socket, TIME_WAIT, is_unheard};

const ETHERNET_HEADER: u32 = 14;

/// Pass the packet on to the next filter.
const PASS: i32 = TC_ACT_UNSPEC;
const DROP: i32 = TC_ACT_SHOT;

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
    // Most packets do not concern the gate: the cheap test comes first.
    let Some(packet) = Packet::of(skb, l3) else {
        return PASS;
    };
    // The priority differs on the VLAN's device: the verdict is given there.
    if skb.is_of_vlan() {
        return PASS;
    }
    // It ends here: the verifier has one way less to follow through the rest.
    if !packet.is_lockds() {
        return muted(&packet);
    }
    let Some(work) = WORK.get_ptr_mut(0) else {
        return DROP;
    };
    // SAFETY: this CPU's value; classifiers on a CPU run one after another.
    let work = unsafe { &mut *work };
    if !packet.flow(&mut work.flow) {
        return DROP;
    }
    if skb.is_own() {
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
    let decided = decided_priority(gate.secret, &work.flow);
    // On an earlier device of its path.
    if skb.priority() == decided {
        return PASS;
    }
    if !packet.is_readable() {
        return drop(work);
    }
    work.decided = decided;
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

/// Drops a packet to a muted port that nothing takes.
#[inline(always)]
fn muted(packet: &Packet) -> i32 {
    let mut flow = Flow::default();
    if !packet.is_muted() || !packet.skb.is_unicast() || !packet.flow(&mut flow) {
        return PASS;
    }
    // SAFETY: an element of our map; the field is read once. The time has no preconditions.
    let is_muted = unsafe {
        (WINDOWS.get(flow.vip)).is_some_and(|window| bpf_ktime_get_ns() < window.muted_until)
    };
    match is_muted && !packet.skb.is_own() && is_unheard(packet, &flow) {
        true => DROP,
        false => PASS,
    }
}

#[inline(always)]
fn drop(work: &Work) -> i32 {
    count(&work.flow.vip, |gated| gated.dropped += 1);
    DROP
}

/// Passes a packet and marks it as decided.
#[inline(always)]
fn pass(packet: &Packet, work: &Work) -> i32 {
    packet.skb.set_priority(work.decided);
    PASS
}

#[inline(always)]
fn datagram(packet: &Packet, work: &mut Work) -> i32 {
    const HEADER: u32 = 8;
    if packet.skb.is_several() {
        return drop(work);
    }
    work.calls.begin_datagram(packet.l4 + HEADER, packet.end);
    match calls::read_datagram(packet.skb, work) {
        Outcome::PASS => pass(packet, work),
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
        // Data in a SYN has no position in the stream yet; the client sends it again.
        if flags & ACK != 0 || len > 0 {
            return drop(work);
        }
        begin(packet, work, seq);
        return PASS;
    }
    if len == 0 || payload < packet.l4 + 20 {
        return PASS;
    }
    let socket = Socket::of(packet, &work.flow);
    let Some(connection) = CONNECTIONS.get_ptr_mut(work.flow) else {
        return close(packet, work, &socket);
    };
    // SAFETY: an element of our map, which only the CPU that has it in `BUSY` changes.
    let connection = unsafe { &mut *connection };
    // Urgent data is taken out of the stream by the receiver.
    if connection.opened != work.opened || flags & URG != 0 || !socket.may_take_data() {
        return close(packet, work, &socket);
    }
    // BPF_NOEXIST: another CPU may be handling a segment of this connection.
    if BUSY.insert(work.flow, 0, 1).is_err() {
        return drop(work);
    }
    let action = follow(packet, work, connection, &socket, (seq, payload, len));
    let _ = BUSY.remove(work.flow);
    action
}

#[inline(always)]
fn follow(
    packet: &Packet,
    work: &mut Work,
    connection: &mut Connection,
    socket: &Socket,
    (seq, payload, len): (u32, u32, u32),
) -> i32 {
    let follower = &mut connection.follower;
    if follower.stream.calls.is_lost() {
        return close(packet, work, socket);
    }
    let skip = match follower.place(seq, len, work.now, &socket.tcp) {
        Place::Old => return pass(packet, work),
        Place::Early => return drop(work),
        Place::Lost => return close(packet, work, socket),
        Place::New(skip) => skip,
        Place::Anew { kept, skip } => {
            follower.go_back(kept);
            skip
        }
    };
    follower.keep();
    follower.stream.calls.at = payload + skip;
    follower.stream.calls.end = packet.end;
    match calls::read_stream(packet.skb, work, connection) {
        Outcome::PASS => {
            connection.follower.pass(seq.wrapping_add(len), work.now);
            pass(packet, work)
        }
        Outcome::DROP => {
            connection.follower.take_back();
            drop(work)
        }
        _ => {
            connection.follower.stream.calls.lose();
            close(packet, work, socket)
        }
    }
}

/// Starts to follow a connection at its first segment. A SYN for a live connection is forged
/// or old, and is ignored.
#[inline(always)]
fn begin(packet: &Packet, work: &Work, seq: u32) {
    match Socket::of(packet, &work.flow).state {
        0 | LISTEN | TIME_WAIT | CLOSE => {}
        // A retransmitted SYN.
        NEW_SYN_RECV => {
            if let Some(connection) = CONNECTIONS.get_ptr(work.flow)
                // SAFETY: an element of our map, an aligned u64.
                && unsafe { (*connection).opened } == work.opened
            {
                return;
            }
        }
        _ => return,
    }
    let Some(fresh) = FRESH.get(0) else { return };
    // If the map is full, the first data closes the connection.
    let _ = CONNECTIONS.insert(work.flow, fresh, 0);
    if let Some(connection) = CONNECTIONS.get_ptr_mut(work.flow) {
        // SAFETY: an element of our map; nothing is sent on it yet.
        let connection = unsafe { &mut *connection };
        connection.follower.begin(seq);
        connection.opened = work.opened;
    }
}

/// Closes a connection that cannot be followed. This segment resets the server's end, if it
/// still exists. The client's end closes when the server answers the next segment, which
/// belongs to no connection, with a reset. The guard handles whatever else gets through.
#[inline(always)]
fn close(packet: &Packet, work: &Work, socket: &Socket) -> i32 {
    count(&work.flow.vip, |gated| gated.closed += 1);
    let skb = packet.skb;
    let is_done = match socket.state {
        0 | TIME_WAIT | CLOSE => true,
        LISTEN if !socket.takes_cookies => return pass(packet, work),
        LISTEN => packet.has_ack() && skb.refuse(packet.l4),
        _ => skb.reset(packet.l4),
    };
    match is_done {
        true => PASS,
        false => DROP,
    }
}
