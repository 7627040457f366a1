//! Which client uses which VIP: lockd asks statd to monitor a client on each LOCK call of a
//! client that can reclaim.

use aya_ebpf::helpers::{bpf_get_current_comm, bpf_ktime_get_ns};
use aya_ebpf::macros::kprobe;
use aya_ebpf::programs::ProbeContext;
use nlmfo_common::record::{HostKey, TELL_AGAIN_NS};

use crate::host;
use crate::kernel::{host_vip, layout, pointer, read, sockaddr};
use crate::maps::{MONITORED, TOLD, UNTOLD};

/// The thread that serves NLM calls. An NFS client on this node calls the same function for
/// its servers, in the thread of the process that locks.
#[inline(always)]
fn is_lockd() -> bool {
    matches!(
        bpf_get_current_comm(),
        Ok([b'l', b'o', b'c', b'k', b'd', 0, ..])
    )
}

// kernel: int nsm_monitor(const struct nlm_host *host)
// seen: 6.1 6.12 7.2 7.3
// context: lockd's thread (or an NFS client's), no lock held, may sleep after
#[kprobe]
pub fn monitor(ctx: ProbeContext) -> u32 {
    if is_lockd()
        && let Some(host) = ctx.arg::<u64>(0)
        && tell(host).is_err()
        && let Some(untold) = UNTOLD.get_ptr_mut(0)
    {
        // SAFETY: our map's only entry; a lost addition is one of many.
        unsafe { *untold += 1 };
    }
    0
}

/// Sends the record of a host, at most once in a while for each host.
#[inline(always)]
fn tell(host: u64) -> Result<(), i32> {
    let net = pointer(host, layout!(host_net))?;
    let key = HostKey {
        vip: host_vip(host)?,
        client: sockaddr(host + layout!(host_addr) as u64)?,
        version: read(host, layout!(host_version))?,
        proto: read::<u16>(host, layout!(host_proto))? as u32,
        netns: read(net, layout!(net_inum))?,
        pad: 0,
    };
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: an element of our map, an aligned u64.
    let told = TOLD.get_ptr(key).map(|at| unsafe { *at });
    if told.is_some_and(|at| now < at + TELL_AGAIN_NS) {
        return Ok(());
    }
    let Some(mut entry) = MONITORED.reserve(0) else {
        return Err(-1);
    };
    if let Err(error) = host::describe(host, entry.as_mut_ptr()) {
        entry.discard(0);
        return Err(error);
    }
    entry.submit(0);
    // If the map is full, the record is sent again, which is harmless.
    let _ = TOLD.insert(key, now, 0);
    Ok(())
}
