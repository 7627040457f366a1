//! Counters of lockd's lock path, per VIP. These programs run for every NLM call of every
//! client: no loops, at most two reads of kernel memory per probe, per-CPU counters.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{kprobe, kretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use nlmfo_common::Addr;
use nlmfo_common::counters::{Counters, LATENCY_BUCKETS};
use nlmfo_ebpf::arguments::reclaim;

use crate::kernel::{host_vip, layout, pointer, read};
use crate::maps::{
    CALL_SLOTS, CALLS, COUNTERS, Call, GRANTS_TOLD, NO_COUNTS, UNCOUNTED, UNLOCKING, Unlocking,
};

/// NLM status codes (RFC 1813 appendix II; `nlm_stats` / `nlm4_stats`).
const NLM_GRANTED: u32 = 0;
const NLM_BLOCKED: u32 = 3;
const NLM_DENIED_GRACE: u32 = 4;
/// `nlm_drop_reply` (include/linux/lockd/bind.h 6.1, fs/lockd/lockd.h 7.2): lockd sends no
/// reply. The client sends the call again, and it is counted then.
const NLM_DROP_REPLY: u32 = 30000;

/// `NLMPROC_GRANTED_MSG`.
const GRANTED_MSG: u32 = 10;

/// The counters of the VIP that `host`'s client uses; counts the event as uncounted if there
/// are none.
#[inline(always)]
pub fn count(host: u64, add: impl FnOnce(&mut Counters)) {
    if let Some(counters) = host_vip(host).ok().and_then(counters_of) {
        // SAFETY: this CPU's value; programs on a CPU do not preempt one another's
        // increments in a way that tears an aligned u64.
        add(unsafe { &mut *counters });
    } else if let Some(uncounted) = UNCOUNTED.get_ptr_mut(0) {
        // SAFETY: our array's only element; a count lost to another CPU still
        // leaves it above 0.
        unsafe { *uncounted += 1 };
    }
}

#[inline(always)]
fn counters_of(vip: Addr) -> Option<*mut Counters> {
    COUNTERS.get_ptr_mut(vip).or_else(|| {
        // BPF_NOEXIST: another CPU may have been quicker.
        let _ = COUNTERS.insert(vip, NO_COUNTS.get(0)?, 1);
        COUNTERS.get_ptr_mut(vip)
    })
}

/// The `nlm_host` behind an `nlm_lock`, by the owner of its `file_lock`.
#[inline(always)]
fn lock_host(lock: u64) -> Result<u64, i32> {
    let owner = pointer(lock, layout!(lock_fl) + layout!(fl_owner))?;
    pointer(owner, layout!(lockowner_host))
}

// kernel: __be32 nlmsvc_lock(struct svc_rqst *rqstp, struct nlm_file *file, struct nlm_host *host, struct nlm_lock *lock, int wait, struct nlm_cookie *cookie, int reclaim)
// seen: 6.1 6.12
// kernel: __be32 nlmsvc_lock(struct svc_rqst *rqstp, struct nlm_file *file, struct nlm_host *host, struct lockd_lock *lock, int wait, struct lockd_cookie *cookie, int reclaim)
// seen: 7.2 7.3
// context: lockd's thread, no lock held
#[kprobe]
pub fn lock_enter(ctx: ProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let Some(host) = ctx.arg::<u64>(2) else {
        return 0;
    };
    if let Some(call) = CALLS.get_ptr_mut(thread as u32 % CALL_SLOTS) {
        let now = Call {
            thread,
            host,
            // SAFETY: no preconditions.
            began: unsafe { bpf_ktime_get_ns() },
            reclaim: reclaim(&ctx),
        };
        // SAFETY: an element of our array; the thread's own slot.
        unsafe { *call = now };
    }
    0
}

// kernel: __be32 nlmsvc_lock(...)
// seen: 6.1 6.12 7.2 7.3
// context: lockd's thread, no lock held; the status is in network byte order
#[kretprobe]
pub fn lock_return(ctx: RetProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let Some(call) = CALLS.get_ptr_mut(thread as u32 % CALL_SLOTS) else {
        return 0;
    };
    // SAFETY: an element of our array.
    let call = unsafe { &mut *call };
    if call.thread != thread {
        return 0;
    }
    call.thread = 0;
    let status = u32::from_be(ctx.ret::<u32>());
    // SAFETY: no preconditions.
    let took = unsafe { bpf_ktime_get_ns() }.saturating_sub(call.began);
    count(call.host, |counters| {
        match status {
            NLM_GRANTED if call.reclaim != 0 => counters.reclaimed += 1,
            NLM_GRANTED => counters.granted += 1,
            NLM_BLOCKED => counters.blocked += 1,
            NLM_DENIED_GRACE => counters.denied_grace += 1,
            NLM_DROP_REPLY => return,
            _ => counters.denied += 1,
        }
        let bucket = log2(took).min(LATENCY_BUCKETS as u32 - 1) as usize;
        if let Some(count) = counters.latency_ns_log2.get_mut(bucket) {
            *count += 1;
        }
    });
    0
}

/// The position of the highest bit; 0 for 0. A binary search: BPF has no such instruction, and
/// a loop costs more.
#[inline(always)]
fn log2(mut value: u64) -> u32 {
    let mut log = 0;
    if value >= 1 << 32 {
        value >>= 32;
        log += 32;
    }
    if value >= 1 << 16 {
        value >>= 16;
        log += 16;
    }
    if value >= 1 << 8 {
        value >>= 8;
        log += 8;
    }
    if value >= 1 << 4 {
        value >>= 4;
        log += 4;
    }
    if value >= 1 << 2 {
        value >>= 2;
        log += 2;
    }
    if value >= 2 {
        log += 1;
    }
    log
}

// kernel: __be32 nlmsvc_unlock(struct net *net, struct nlm_file *file, struct nlm_lock *lock)
// seen: 6.1 6.12
// kernel: __be32 nlmsvc_unlock(struct net *net, struct nlm_file *file, struct lockd_lock *lock)
// seen: 7.2 7.3
// context: lockd's thread, no lock held
#[kprobe]
pub fn unlock(ctx: ProbeContext) -> u32 {
    let Some(lock) = ctx.arg::<u64>(2) else {
        return 0;
    };
    let thread = bpf_get_current_pid_tgid();
    if let Some(unlocking) = UNLOCKING.get_ptr_mut(thread as u32 % CALL_SLOTS) {
        // SAFETY: an element of our array; the thread's own slot.
        unsafe { *unlocking = Unlocking { thread, lock } };
    }
    if let Ok(host) = lock_host(lock) {
        count(host, |counters| counters.unlocked += 1);
    }
    0
}

// kernel: __be32 nlmsvc_cancel_blocked(struct net *net, struct nlm_file *file, struct nlm_lock *lock)
// seen: 6.1 6.12
// kernel: __be32 nlmsvc_cancel_blocked(struct net *net, struct nlm_file *file, struct lockd_lock *lock)
// seen: 7.2 7.3
// context: lockd's thread, no lock held
//
// nlmsvc_unlock calls it first, whether anything waits or not (fs/lockd/svclock.c 6.1 and
// 6.12; seen on 7.3). Only a call that does not come from nlmsvc_unlock is a client's CANCEL.
#[kprobe]
pub fn cancel(ctx: ProbeContext) -> u32 {
    let Some(lock) = ctx.arg::<u64>(2) else {
        return 0;
    };
    let thread = bpf_get_current_pid_tgid();
    if let Some(unlocking) = UNLOCKING.get_ptr_mut(thread as u32 % CALL_SLOTS) {
        // SAFETY: an element of our array; the thread's own slot.
        let unlocking = unsafe { &mut *unlocking };
        if unlocking.thread == thread && unlocking.lock == lock {
            unlocking.thread = 0;
            return 0;
        }
    }
    if let Ok(host) = lock_host(lock) {
        count(host, |counters| counters.cancelled += 1);
    }
    0
}

// kernel: __be32 nlmsvc_testlock(struct svc_rqst *rqstp, struct nlm_file *file, struct nlm_host *host, struct nlm_lock *lock, struct nlm_lock *conflock, struct nlm_cookie *cookie)
// seen: 6.1 6.12
// kernel: __be32 nlmsvc_testlock(struct svc_rqst *rqstp, struct nlm_file *file, struct nlm_host *host, struct lockd_lock *lock, struct lockd_lock *conflock)
// seen: 7.2 7.3
// context: lockd's thread, no lock held
#[kprobe]
pub fn test(ctx: ProbeContext) -> u32 {
    if let Some(host) = ctx.arg::<u64>(2) {
        count(host, |counters| counters.tested += 1);
    }
    0
}

// kernel: int nlm_async_call(struct nlm_rqst *req, u32 proc, const struct rpc_call_ops *tk_ops)
// seen: 6.1 6.12 7.2 7.3
// context: lockd's thread, no lock held
//
// A blocked request is granted inside nlmsvc_grant_blocked, which is inlined
// everywhere. This call notifies the client, and is repeated when the client does not
// answer. Only the first one for a cookie counts.
#[kprobe]
pub fn grant_told(ctx: ProbeContext) -> u32 {
    let (Some(request), Some(GRANTED_MSG)) = (ctx.arg::<u64>(0), ctx.arg::<u32>(1)) else {
        return 0;
    };
    let Ok(cookie) = read::<u32>(request, layout!(rqst_cookie)) else {
        return 0;
    };
    if let Some(told) = GRANTS_TOLD.get_ptr(request) {
        // SAFETY: an element of our map; a u32 is read whole.
        if unsafe { *told } == cookie {
            return 0;
        }
    }
    let _ = GRANTS_TOLD.insert(request, cookie, 0);
    if let Ok(host) = pointer(request, layout!(rqst_host)) {
        count(host, |counters| counters.granted_later += 1);
    }
    0
}
