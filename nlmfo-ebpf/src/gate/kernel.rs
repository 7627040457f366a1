//! The kernel's structs that the gate and the audit read, through the offsets that
//! the loader took from BTF, and whether the kernel itself is in grace.

use aya_ebpf::helpers::generated::bpf_get_current_task;
use aya_ebpf::macros::raw_tracepoint;
use aya_ebpf::programs::RawTracePointContext;
use nlmfo_common::gate::GateLayout;
pub use nlmfo_ebpf::memory::sockaddr;
use nlmfo_ebpf::memory::{pointer, read};

use crate::maps::GATE;

/// Set by the loader before the programs are verified; read-only afterwards.
#[unsafe(no_mangle)]
pub static GATE_LAYOUT: GateLayout = GateLayout::UNSET;

/// A field of [`GATE_LAYOUT`].
macro_rules! layout {
    ($($field:ident).+) => {
        nlmfo_ebpf::field!($crate::kernel::GATE_LAYOUT, $($field).+)
    };
}
pub(crate) use layout;

/// Whether the kernel itself is in grace: grace.ko's list of this network namespace is not
/// empty (`locks_in_grace()`, `fs/nfs_common/grace.c`, 6.1 to 7.3).
#[inline(always)]
pub fn in_grace(net: u64) -> Result<bool, i32> {
    let id = read::<u32>(layout!(grace_net_id), 0)?;
    let generic = pointer(net, layout!(net_gen))?;
    let head = pointer(generic + id as u64 * 8, layout!(net_generic_ptr))?;
    Ok(pointer(head, 0)? != head)
}

/// Stores the network namespace of the calling thread as the gate's. The tool runs it
/// (`BPF_PROG_TEST_RUN`).
// hook: none: the tool runs it (BPF_PROG_TEST_RUN)
// seen: 6.1 6.12 7.3
// context: the tool's own thread, no lock held
#[raw_tracepoint]
pub fn gate_here(_ctx: RawTracePointContext) -> i32 {
    // SAFETY: no arguments, no preconditions.
    let task = unsafe { bpf_get_current_task() };
    let net = pointer(task, layout!(task_nsproxy))
        .and_then(|nsproxy| pointer(nsproxy, layout!(nsproxy_net)));
    if let (Ok(net), Some(gate)) = (net, GATE.get_ptr_mut(0)) {
        // SAFETY: our map's only entry; an aligned u64.
        unsafe { (*gate).net = net };
    }
    0
}
