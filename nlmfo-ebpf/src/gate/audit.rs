//! The audit: what lockd itself answered to LOCK calls while a window was open. It
//! knows the gate only by the notes that the gate leaves of the calls it saw: a lock
//! that is granted without one went past the gate.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{kprobe, kretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use nlmfo_common::Addr;
use nlmfo_common::gate::{Audited, NoteKey, VIOLATIONS as VIOLATIONS_KEPT, violation};
use nlmfo_common::nlm_call::{Fsid, HANDLE_WORDS};
use nlmfo_common::record::FH_MAX;
use nlmfo_ebpf::memory::{pointer, read, read_bytes};

use crate::kernel::{layout, sockaddr};
use crate::maps::{
    ANSWERING, ANSWERING_SLOTS, AUDITED, GATE, NOTES, SCOPES, VIOLATION_COUNT, VIOLATIONS, WINDOWS,
};

/// NLM status codes (RFC 1813 appendix II; `nlm_stats` / `nlm4_stats`).
const NLM_GRANTED: u32 = 0;
const NLM_BLOCKED: u32 = 3;
const NLM_DENIED_GRACE: u32 = 4;
/// lockd's own "send no answer" (`nlm_drop_reply`).
const NLM_DROP_REPLY: u32 = 30000;

/// What the gate noted of a call: not a reclaim, or nothing at all. Else a reclaim.
const NEW: u32 = 0;
const UNSEEN: u32 = u32::MAX;

/// `NLMPROC_GRANTED_MSG`.
const GRANTED_MSG: u32 = 10;

/// A LOCK call between entry and return.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Answering {
    thread: u64,
    vip: Addr,
    rqstp: u64,
    file: u64,
    host: u64,
    lock: u64,
}

/// What lockd granted or queued, for the report.
struct Lock {
    vip: Addr,
    host: u64,
    file: u64,
    /// The `nlm_lock` of the call.
    lock: u64,
    xid: u32,
    port: u16,
}

#[inline(always)]
fn host_vip(host: u64) -> Result<Addr, i32> {
    sockaddr(host + layout!(common.host_srcaddr) as u64).map(|(vip, _)| vip)
}

/// Whether what lockd does now for this host's VIP and file falls into an audited window
/// of its network namespace: the same address may serve in another one.
#[inline(always)]
fn is_audited(host: u64, vip: &Addr, file: u64) -> bool {
    let Some(gate) = GATE.get(0) else {
        return false;
    };
    if pointer(host, layout!(common.host_net)) != Ok(gate.net) {
        return false;
    }
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: an element of our map; its fields are read once each.
    if let Some(window) = unsafe { WINDOWS.get(vip) }
        && now >= window.audited_from
        && now < window.until
    {
        return true;
    }
    now < gate.scope_until && is_of_scope(file)
}

#[inline(always)]
fn is_of_scope(file: u64) -> bool {
    let handle = file + layout!(common.nlm_file_fh_data) as u64;
    let Ok(words) = read::<[u32; HANDLE_WORDS]>(handle, 0) else {
        return false;
    };
    // SAFETY: whether there is such an element is all that is asked.
    Fsid::of_handle(&words).is_some_and(|fsid| unsafe { SCOPES.get(fsid) }.is_some())
}

// kernel: __be32 nlmsvc_lock(struct svc_rqst *rqstp, struct nlm_file *file, struct nlm_host *host, struct nlm_lock *lock, int wait, struct nlm_cookie *cookie, int reclaim)
// seen: 6.1 6.12
// kernel: __be32 nlmsvc_lock(struct svc_rqst *rqstp, struct nlm_file *file, struct nlm_host *host, struct lockd_lock *lock, int wait, struct lockd_cookie *cookie, int reclaim)
// seen: 7.2 7.3
// context: lockd's thread, no lock held
#[kprobe]
pub fn audit_enter(ctx: ProbeContext) -> u32 {
    let (Some(rqstp), Some(file)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) else {
        return 0;
    };
    let (Some(host), Some(lock)) = (ctx.arg::<u64>(2), ctx.arg::<u64>(3)) else {
        return 0;
    };
    let Ok(vip) = host_vip(host) else { return 0 };
    if !is_audited(host, &vip, file) {
        return 0;
    }
    let thread = bpf_get_current_pid_tgid();
    if let Some(answering) = ANSWERING.get_ptr_mut(thread as u32 % ANSWERING_SLOTS) {
        let now = Answering {
            thread,
            vip,
            rqstp,
            file,
            host,
            lock,
        };
        // SAFETY: an element of our array; the thread's own slot.
        unsafe { *answering = now };
    }
    0
}

// kernel: __be32 nlmsvc_lock(...)
// seen: 6.1 6.12 7.2 7.3
// context: lockd's thread, no lock held; the status is in network byte order
#[kretprobe]
pub fn audit_return(ctx: RetProbeContext) -> u32 {
    let thread = bpf_get_current_pid_tgid();
    let Some(answering) = ANSWERING.get_ptr_mut(thread as u32 % ANSWERING_SLOTS) else {
        return 0;
    };
    // SAFETY: an element of our array.
    let answering = unsafe { &mut *answering };
    if answering.thread != thread {
        return 0;
    }
    answering.thread = 0;
    let status = u32::from_be(ctx.ret::<u32>());
    if status == NLM_DROP_REPLY {
        return 0;
    }
    let rqstp = answering.rqstp;
    let xid = u32::from_be(read::<u32>(rqstp, layout!(rqst_xid)).unwrap_or(0));
    let (client, port) =
        sockaddr(rqstp + layout!(rqst_addr) as u64).unwrap_or((Addr::default(), 0));
    let key = NoteKey {
        client,
        port,
        pad: 0,
        xid,
    };
    // SAFETY: an element of our map; a whole word is read.
    let sent = unsafe { NOTES.get(key) }.map_or(UNSEEN, |note| note.sent);
    let found = match (status, sent) {
        (NLM_GRANTED, NEW) => violation::NEW_LOCK,
        (NLM_GRANTED, UNSEEN) => violation::UNSEEN,
        (NLM_BLOCKED, NEW | UNSEEN) => violation::QUEUED,
        _ => 0,
    };
    if found == 0 {
        audited(answering.vip, |audited| match (status, sent) {
            (NLM_GRANTED, _) => audited.reclaimed += 1,
            (NLM_DENIED_GRACE, NEW | UNSEEN) => audited.refused += 1,
            (NLM_DENIED_GRACE, _) => audited.reclaims_refused += 1,
            (_, NEW | UNSEEN) => audited.other += 1,
            _ => audited.reclaims_failed += 1,
        });
        return 0;
    }
    let lock = Lock {
        vip: answering.vip,
        host: answering.host,
        file: answering.file,
        lock: answering.lock,
        xid,
        port,
    };
    report(found, &lock);
    0
}

// kernel: int nlm_async_call(struct nlm_rqst *req, u32 proc, const struct rpc_call_ops *tk_ops)
// seen: 6.1 6.12 7.2 7.3
// context: lockd's thread, no lock held
//
// The grant of a blocked request, which has no grace check; nlmsvc_grant_blocked is
// inlined everywhere, and this is the call that tells the client. If it is told again,
// that is another violation in number, and the same in kind.
#[kprobe]
pub fn audit_granted(ctx: ProbeContext) -> u32 {
    let (Some(request), Some(GRANTED_MSG)) = (ctx.arg::<u64>(0), ctx.arg::<u32>(1)) else {
        return 0;
    };
    let Ok(host) = pointer(request, layout!(common.rqst_host)) else {
        return 0;
    };
    let Ok(vip) = host_vip(host) else { return 0 };
    let fl = request + layout!(common.rqst_lock_fl) as u64;
    if is_audited(host, &vip, 0) {
        let lock = Lock {
            vip,
            host,
            file: 0,
            lock: fl - layout!(common.lock_fl) as u64,
            xid: 0,
            port: 0,
        };
        report(violation::WAITER, &lock);
    }
    0
}

/// Counts for the VIP.
#[inline(always)]
fn audited(vip: Addr, add: impl FnOnce(&mut Audited)) {
    let known = AUDITED.get_ptr_mut(vip).or_else(|| {
        // BPF_NOEXIST
        let _ = AUDITED.insert(vip, Audited::default(), 1);
        AUDITED.get_ptr_mut(vip)
    });
    if let Some(audited) = known {
        // SAFETY: an element of our map; lockd is one thread on every kernel seen.
        add(unsafe { &mut *audited });
    }
}

/// Notes a violation by name, as long as there is room.
#[inline(always)]
fn report(kind: u32, lock: &Lock) {
    audited(lock.vip, |audited| audited.violations += 1);
    let Some(count) = VIOLATION_COUNT.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: our map's only entry; lockd is one thread.
    let slot = unsafe { *count };
    // SAFETY: as above.
    unsafe { *count = slot + 1 };
    if slot >= VIOLATIONS_KEPT as u64 {
        return;
    }
    let Some(entry) = VIOLATIONS.get_ptr_mut(slot as u32) else {
        return;
    };
    // SAFETY: an element of our map that nobody else writes.
    let entry = unsafe { &mut *entry };
    // SAFETY: no preconditions.
    entry.at = unsafe { bpf_ktime_get_ns() };
    entry.vip = lock.vip;
    entry.client = sockaddr(lock.host + layout!(common.host_addr) as u64)
        .map_or(Addr::default(), |(client, _)| client);
    entry.xid = lock.xid;
    entry.port = lock.port as u32;
    entry.svid = read(lock.lock, layout!(lock_svid)).unwrap_or(0);
    let fl = lock.lock + layout!(common.lock_fl) as u64;
    // A byte up to 6.8, four from 6.9; the values fit the first byte on the
    // little-endian machines that we build for.
    entry.mode = read::<u8>(fl, layout!(common.fl_type)).unwrap_or(0) as u32;
    entry.start = read(fl, layout!(common.fl_start)).unwrap_or(0);
    entry.end = read(fl, layout!(common.fl_end)).unwrap_or(0);
    entry.fh_len = 0;
    if lock.file != 0 {
        let len = read::<u16>(lock.file, layout!(common.nlm_file_fh_size)).unwrap_or(0) as u32;
        let handle = lock.file + layout!(common.nlm_file_fh_data) as u64;
        if read_bytes(&raw mut entry.fh, len, handle).is_ok() {
            entry.fh_len = len.min(FH_MAX as u32);
        }
    }
    entry.kind = kind;
}
