//! Counters of locks that lockd releases without an UNLOCK from the client, per VIP and cause.
//! All paths end in `nlm_unlock_files`; the outer function notes the cause for the thread.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{kprobe, kretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use nlmfo_common::counters::cause;

use crate::kernel::{layout, pointer};
use crate::lock_path::count;
use crate::maps::CAUSES;

/// Notes why this thread releases locks. The outermost cause counts: a reboot and a shutdown
/// free a host's resources through the same function as FREE_ALL.
#[inline(always)]
fn enter(cause: usize) -> u32 {
    // BPF_NOEXIST
    let _ = CAUSES.insert(bpf_get_current_pid_tgid(), cause as u32, 1);
    0
}

#[inline(always)]
fn leave(cause: usize) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: an element of our map; a u32 is read whole.
    if CAUSES.get_ptr(thread).map(|noted| unsafe { *noted }) == Some(cause as u32) {
        let _ = CAUSES.remove(thread);
    }
    0
}

// kernel: int nlmsvc_unlock_all_by_ip(struct sockaddr *server_addr)
// seen: 6.1 6.12 7.2 7.3
// context: the thread that writes unlock_ip, no lock held
#[kprobe]
pub fn unlock_ip_enter(_ctx: ProbeContext) -> u32 {
    enter(cause::UNLOCK_IP)
}

// kernel: int nlmsvc_unlock_all_by_ip(...)
// seen: 6.1 6.12 7.2 7.3
// context: as on entry
#[kretprobe]
pub fn unlock_ip_return(_ctx: RetProbeContext) -> u32 {
    leave(cause::UNLOCK_IP)
}

// kernel: int nlmsvc_unlock_all_by_sb(struct super_block *sb)
// seen: 6.1 6.12 7.2 7.3
// context: the thread that writes unlock_filesystem, no lock held
#[kprobe]
pub fn unlock_sb_enter(_ctx: ProbeContext) -> u32 {
    enter(cause::UNLOCK_FILESYSTEM)
}

// kernel: int nlmsvc_unlock_all_by_sb(...)
// seen: 6.1 6.12 7.2 7.3
// context: as on entry
#[kretprobe]
pub fn unlock_sb_return(_ctx: RetProbeContext) -> u32 {
    leave(cause::UNLOCK_FILESYSTEM)
}

// kernel: void nlm_host_rebooted(const struct net *net, const struct nlm_reboot *info)
// seen: 6.1 6.12
// kernel: void nlm_host_rebooted(const struct net *net, const struct lockd_reboot *info)
// seen: 7.2 7.3
// context: lockd's thread, no lock held
#[kprobe]
pub fn reboot_enter(_ctx: ProbeContext) -> u32 {
    enter(cause::CLIENT_REBOOT)
}

// kernel: void nlm_host_rebooted(...)
// seen: 6.1 6.12 7.2 7.3
// context: as on entry
#[kretprobe]
pub fn reboot_return(_ctx: RetProbeContext) -> u32 {
    leave(cause::CLIENT_REBOOT)
}

// kernel: void nlmsvc_free_host_resources(struct nlm_host *host)
// seen: 6.1 6.12 7.2 7.3
// context: lockd's thread, no lock held
#[kprobe]
pub fn free_all_enter(_ctx: ProbeContext) -> u32 {
    enter(cause::FREE_ALL)
}

// kernel: void nlmsvc_free_host_resources(...)
// seen: 6.1 6.12 7.2 7.3
// context: as on entry
#[kretprobe]
pub fn free_all_return(_ctx: RetProbeContext) -> u32 {
    leave(cause::FREE_ALL)
}

// kernel: void nlmsvc_invalidate_all(void)
// seen: 6.1 6.12 7.2 7.3
// context: lockd's thread on its way out, no lock held
#[kprobe]
pub fn shutdown_enter(_ctx: ProbeContext) -> u32 {
    enter(cause::SHUTDOWN)
}

// kernel: void nlmsvc_invalidate_all(...)
// seen: 6.1 6.12 7.2 7.3
// context: as on entry
#[kretprobe]
pub fn shutdown_return(_ctx: RetProbeContext) -> u32 {
    leave(cause::SHUTDOWN)
}

// kernel: void nlm_shutdown_hosts_net(struct net *net)
// seen: 6.1 6.12 7.2 7.3
// context: the thread that stops lockd in a network namespace, or lockd's on its
// way out; a mutex held
//
// From 6.12 it frees each host's resources, as FREE_ALL does (fs/lockd/host.c);
// 6.1 drops locks in nlmsvc_invalidate_all alone, once the last network
// namespace's lockd is stopped.
#[kprobe]
pub fn hosts_down_enter(_ctx: ProbeContext) -> u32 {
    enter(cause::SHUTDOWN)
}

// kernel: void nlm_shutdown_hosts_net(...)
// seen: 6.1 6.12 7.2 7.3
// context: as on entry
#[kretprobe]
pub fn hosts_down_return(_ctx: RetProbeContext) -> u32 {
    leave(cause::SHUTDOWN)
}

// kernel: int nlm_unlock_files(struct nlm_file *file, const struct file_lock *fl)
// seen: 6.1 6.12 7.2 7.3
// context: process, no lock held; drops all of one owner's locks on one file
#[kprobe]
pub fn released(ctx: ProbeContext) -> u32 {
    let Some(lock) = ctx.arg::<u64>(1) else {
        return 0;
    };
    let Ok(owner) = pointer(lock, layout!(fl_owner)) else {
        return 0;
    };
    let Ok(host) = pointer(owner, layout!(lockowner_host)) else {
        return 0;
    };
    // SAFETY: an element of our map; a u32 is read whole.
    let cause = CAUSES
        .get_ptr(bpf_get_current_pid_tgid())
        .map_or(cause::OTHER, |noted| unsafe { *noted } as usize);
    count(host, |counters| {
        if let Some(count) = counters.released.of_mut(cause) {
            *count += 1;
        }
    });
    0
}
