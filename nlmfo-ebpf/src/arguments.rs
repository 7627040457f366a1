//! Arguments that registers have no room for.

use aya_ebpf::programs::ProbeContext;

#[cfg(bpf_target_arch = "x86_64")]
use crate::memory::read;

/// `nlmsvc_lock`'s seventh argument, which x86-64 passes on the stack, above
/// the return address.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
pub fn reclaim(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context of a kprobe is its pt_regs.
    let sp = unsafe { (*ctx.regs).rsp };
    read::<u32>(sp, 8).unwrap_or(0) as u64
}

/// `nlmsvc_lock`'s seventh argument, which arm64 passes in a register.
#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
pub fn reclaim(ctx: &ProbeContext) -> u64 {
    ctx.arg::<u32>(6).unwrap_or(0) as u64
}
