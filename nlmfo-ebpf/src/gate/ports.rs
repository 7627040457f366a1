//! lockd's ports. The gate follows them over restarts of lockd, without a process of ours.

use aya_ebpf::macros::kprobe;
use aya_ebpf::programs::ProbeContext;
use nlmfo_ebpf::memory::{pointer, read_str};

use crate::kernel::layout;
use crate::maps::{GATE, MUTED, PORT_WORDS, PORTS};

const IPPROTO_TCP: u16 = 6;
const IPPROTO_UDP: u16 = 17;

// kernel: int svc_register(const struct svc_serv *serv, struct net *net, const int family, const short unsigned int proto, const short unsigned int port)
// seen: 6.1 6.12 7.2 7.3
// context: process, whoever makes lockd listen
#[kprobe]
pub fn gate_ports(ctx: ProbeContext) -> u32 {
    let (Some(serv), Some(net)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) else {
        return 0;
    };
    let (Some(proto), Some(port)) = (ctx.arg::<u16>(3), ctx.arg::<u16>(4)) else {
        return 0;
    };
    let Some(gate) = GATE.get(0) else { return 0 };
    // One word, including the terminating zero.
    let mut name = [0; 8];
    if let Ok(text) = pointer(serv, layout!(serv_name)) {
        read_str(&raw mut name, text);
    }
    if gate.net == net && u64::from_ne_bytes(name) == u64::from_ne_bytes(*b"lockd\0\0\0") {
        listen(proto, port);
    }
    0
}

/// Where the bit of a port is.
#[inline(always)]
fn place(proto: u16, port: u16) -> Option<(u32, u64)> {
    let first = match proto {
        IPPROTO_TCP => 0,
        IPPROTO_UDP => PORT_WORDS,
        _ => return None,
    };
    Some((first + port as u32 / 64, 1 << (port % 64)))
}

#[inline(always)]
fn listen(proto: u16, port: u16) {
    if let Some((word, bit)) = place(proto, port)
        && let Some(ports) = PORTS.get_ptr_mut(word)
    {
        // SAFETY: an element of our map. Two listeners are never made at once:
        // nlmsvc_mutex is held.
        unsafe { *ports |= bit };
    }
}

/// Whether lockd listens on this port.
#[inline(always)]
pub fn is_lockds(proto: u16, port: u16) -> bool {
    place(proto, port)
        .and_then(|(word, bit)| Some(PORTS.get(word)? & bit != 0))
        .unwrap_or(false)
}

/// Whether what nothing listens for on this port may be dropped.
#[inline(always)]
pub fn is_muted(proto: u16, port: u16) -> bool {
    place(proto, port)
        .and_then(|(word, bit)| Some(MUTED.get(word)? & bit != 0))
        .unwrap_or(false)
}
