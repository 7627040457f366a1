//! From `nlmsvc_serv` to the ports of its permanent sockets.
//!
//! The list is read without its lock (`sv_lock`). At each step the links must agree in both
//! directions; if the list changes during the walk, the tool reads it again.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_loop};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::RawTracePointContext;
use core::ffi::c_void;
use nlmfo_common::sockets::{ROOM, Socket, Sockets, SocketsLayout, outcome};
use nlmfo_ebpf::memory::{pointer, read};

/// Set by the loader before the program is verified; read-only afterwards.
#[unsafe(no_mangle)]
pub static SOCKETS_LAYOUT: SocketsLayout = SocketsLayout::UNSET;

#[map]
pub static SOCKETS: Array<Sockets> = Array::with_max_entries(1, 0);

/// A field of [`SOCKETS_LAYOUT`].
macro_rules! layout {
    ($field:ident) => {
        nlmfo_ebpf::field!(SOCKETS_LAYOUT, $field)
    };
}

/// `NLM_PROGRAM` of include/linux/lockd/bind.h.
const NLM_PROGRAM: u32 = 100_021;

/// Versions of NLM that are looked for; 4 is the highest.
const VERSIONS: u32 = 8;

/// Maximum number of sockets, over all network namespaces.
const STEPS: u32 = 1 << 16;

const CONTINUE: i64 = 0;
const STOP: i64 = 1;

/// Writes lockd's sockets in the network namespace of the calling thread to the map. The tool
/// runs it (`BPF_PROG_TEST_RUN`).
// hook: none: the tool runs it (BPF_PROG_TEST_RUN)
// seen: 6.1 6.12 7.3
// context: the tool's own thread, no lock held
#[raw_tracepoint]
pub fn lockd_sockets(_ctx: RawTracePointContext) -> i32 {
    let Some(state) = SOCKETS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: one entry of a map that only one tool has, which runs one walk at a time.
    let state = unsafe { &mut *state };
    state.outcome = outcome::CUT;
    state.count = 0;
    state.versions = 0;
    match begin(state) {
        Ok(true) => {
            // SAFETY: the callback has the helper's signature and needs no context.
            unsafe {
                bpf_loop(STEPS, step as *mut c_void, core::ptr::null_mut(), 0);
            }
        }
        Ok(false) => {}
        Err(_) => state.outcome = outcome::FAULT,
    }
    0
}

/// Whether there is a list to walk.
#[inline(always)]
fn begin(state: &mut Sockets) -> Result<bool, i32> {
    // SAFETY: no arguments, no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let nsproxy = pointer(task, layout!(task_nsproxy))?;
    state.net = pointer(nsproxy, layout!(nsproxy_net))?;
    let serv = pointer(layout!(nlmsvc_serv), 0)?;
    if serv == 0 {
        state.outcome = outcome::NOT_SERVING;
        return Ok(false);
    }
    let program = pointer(serv, layout!(serv_program))?;
    if read::<u32>(program, layout!(program_number))? != NLM_PROGRAM {
        state.outcome = outcome::FOREIGN;
        return Ok(false);
    }
    let known: u32 = read(program, layout!(program_versions))?;
    let table = pointer(program, layout!(program_table))?;
    for version in 0..VERSIONS {
        if version < known && pointer(table + version as u64 * 8, 0)? != 0 {
            state.versions |= 1 << version;
        }
    }
    state.head = serv + layout!(serv_permsocks) as u64;
    state.before = state.head;
    state.node = pointer(state.head, 0)?;
    Ok(true)
}

extern "C" fn step(_index: u64, _context: *mut c_void) -> i64 {
    let Some(state) = SOCKETS.get_ptr_mut(0) else {
        return STOP;
    };
    // SAFETY: as in `lockd_sockets`, which has lent nothing out meanwhile.
    let state = unsafe { &mut *state };
    match look(state) {
        Ok(outcome::CUT) => CONTINUE,
        Ok(end) => {
            state.outcome = end;
            STOP
        }
        Err(_) => {
            state.outcome = outcome::FAULT;
            STOP
        }
    }
}

/// Handles one entry of the list. Returns the outcome of the walk, or [`outcome::CUT`] if it
/// continues.
#[inline(always)]
fn look(state: &mut Sockets) -> Result<u32, i32> {
    if state.node == state.head {
        return Ok(outcome::DONE);
    }
    // list_head: next, prev.
    if pointer(state.node, 8)? != state.before {
        return Ok(outcome::TORN);
    }
    let xprt = state.node - layout!(xprt_list) as u64;
    if pointer(xprt, layout!(xprt_net))? == state.net {
        let svsk = xprt - layout!(sock_xprt) as u64;
        let sk = pointer(svsk, layout!(sock_sk))?;
        let socket = Socket {
            family: read(sk, layout!(sk_family))?,
            protocol: read(sk, layout!(sk_protocol))?,
            port: read(sk, layout!(sk_num))?,
            pad: 0,
        };
        // It is still in the list, so it was one of lockd's sockets when it was read.
        if pointer(state.before, 0)? != state.node {
            return Ok(outcome::TORN);
        }
        let count = state.count as usize;
        if count >= ROOM {
            return Ok(outcome::FULL);
        }
        state.found[count] = socket;
        state.count += 1;
    }
    state.before = state.node;
    state.node = pointer(state.node, 0)?;
    Ok(outcome::CUT)
}
