//! The guard at lockd's sockets. In a window it drops every packet through the VIP that the
//! gate did not decide on; in a fence it drops all of them. It sees packets as the sockets do,
//! after devices without the gate, VLAN tags, tunnels and address translation.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use nlmfo_common::Addr;
use nlmfo_common::gate::{Flow, decided_priority};
use nlmfo_ebpf::memory::pointer;

use crate::kernel::layout;
use crate::maps::{GATE, WINDOWS, count};
use crate::packet::{Packet, Skb, TCP, UDP};
use crate::ports::is_lockds;
use crate::socket::address;

const PASS: i32 = 1;
const DROP: i32 = 0;

// hook: cgroup_skb ingress of the root cgroup: every socket, the kernel's too
// seen: 6.1 6.12 7.3
// context: softirq, before TCP and UDP look at more than the ports
#[cgroup_skb(ingress)]
pub fn guard(ctx: SkBuffContext) -> i32 {
    let Some(gate) = GATE.get(0) else { return PASS };
    if gate.until == 0 {
        return PASS;
    }
    // SAFETY: the program's context; a socket's port in host byte order.
    let (socket, port) = unsafe {
        let socket = (*ctx.skb.skb).__bindgen_anon_2.sk;
        if socket.is_null() {
            return PASS;
        }
        (socket, (*socket).src_port as u16)
    };
    if !is_lockds(TCP, port) && !is_lockds(UDP, port) {
        return PASS;
    }
    let skb = Skb(ctx.skb.skb);
    let Some(packet) = Packet::at_socket(skb) else {
        return PASS;
    };
    if packet.is_readable() && !is_lockds(packet.proto, port) {
        return PASS;
    }
    if skb.is_own() || pointer(address(socket), layout!(sock_net)) != Ok(gate.net) {
        return PASS;
    }
    let mut flow = Flow::default();
    if !packet.flow(&mut flow) {
        return DROP;
    }
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: an element of our map; its fields are read once each.
    let (until, fenced_until) = match unsafe { WINDOWS.get(flow.vip) } {
        Some(window) => (window.until, window.fenced_until),
        None => (0, 0),
    };
    let is_fenced = now < fenced_until;
    let is_held = now < until || now < gate.scope_until;
    // For lockd, a multicast packet has an address of lockd's own choice.
    let is_for_any =
        now < gate.until && packet.proto == UDP && (!skb.is_unicast() || is_for_many(&flow.vip));
    if !is_fenced && !is_held && !is_for_any {
        return PASS;
    }
    let is_decided = is_held && skb.priority() == decided_priority(gate.secret, &flow);
    if (is_decided && !is_fenced && !is_for_any) || !packet.brings_data() {
        return PASS;
    }
    count(&flow.vip, |gated| gated.guarded += 1);
    DROP
}

/// Whether it is a multicast address, or IPv4's broadcast to all of a link.
#[inline(always)]
fn is_for_many(address: &Addr) -> bool {
    match address.0 {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, first, ..] => first >= 224,
        [first, ..] => first == 0xff,
    }
}
