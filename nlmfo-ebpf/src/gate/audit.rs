//! The audit: how lockd answered LOCK calls while a window was open. The gate notes each call
//! that it saw; a lock that is granted without such a note bypassed the gate.

use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_ktime_get_ns};
use aya_ebpf::macros::{kprobe, kretprobe, map};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use nlmfo_common::Addr;
use nlmfo_common::gate::{Audited, NoteKey, VIOLATIONS as VIOLATIONS_KEPT, violation};
use nlmfo_common::nlm_call::{Fsid, HANDLE_WORDS};
use nlmfo_common::record::FH_MAX;
use nlmfo_ebpf::arguments::reclaim;
use nlmfo_ebpf::memory::{pointer, read, read_bytes};

use crate::calls::noted;
use crate::kernel::{layout, sockaddr};
use crate::maps::{AUDITED, GATE, SCOPES, VIOLATION_COUNT, VIOLATIONS, WINDOWS};

/// NLM status codes (RFC 1813 appendix II; `nlm_stats` / `nlm4_stats`).
const NLM_GRANTED: u32 = 0;
const NLM_BLOCKED: u32 = 3;
const NLM_DENIED_GRACE: u32 = 4;
/// `nlm_drop_reply`: lockd sends no reply.
const NLM_DROP_REPLY: u32 = 30000;

/// `NLMPROC_GRANTED_MSG`.
const GRANTED_MSG: u32 = 10;

/// A LOCK call between entry and return.
#[repr(C)]
#[derive(Clone, Copy)]
struct Answering {
    thread: u64,
    vip: Addr,
    file: u64,
    host: u64,
    lock: u64,
    /// The `reclaim` word as lockd read it.
    reclaim: u64,
    key: NoteKey,
    /// Older notes of the gate belong to an earlier window.
    opened: u64,
}

/// LOCK calls between entry and return, indexed by the low bits of the thread ID.
#[map]
static ANSWERING: Array<Answering> = Array::with_max_entries(ANSWERING_SLOTS, 0);
const ANSWERING_SLOTS: u32 = 64;

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

/// The start of the window to which lockd's present call for this host's VIP and file belongs:
/// either the window is being audited now, or the gate saw the call while it was open (lockd
/// may start on it after the window's end). Only in the gate's network namespace: another one
/// may have the same address.
#[inline(always)]
fn audited_window(host: u64, vip: &Addr, file: u64, key: Option<&NoteKey>) -> Option<u64> {
    let gate = GATE.get(0)?;
    if gate.until == 0 || pointer(host, layout!(common.host_net)) != Ok(gate.net) {
        return None;
    }
    // SAFETY: no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    let is_noted = |opened: u64| opened != 0 && key.is_some_and(|key| noted(key, opened).is_some());
    // SAFETY: an element of our map; its fields are read once each.
    if let Some(window) = unsafe { WINDOWS.get(vip) }
        && ((now >= window.audited_from && now < window.until) || is_noted(window.opened))
    {
        return Some(window.opened);
    }
    let is_in_scope = (now < gate.scope_until && is_of_scope(file)) || is_noted(gate.scope_opened);
    is_in_scope.then_some(gate.scope_opened)
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
    let (client, port) =
        sockaddr(rqstp + layout!(rqst_addr) as u64).unwrap_or((Addr::default(), 0));
    let key = NoteKey {
        client,
        port,
        pad: 0,
        xid: u32::from_be(read::<u32>(rqstp, layout!(rqst_xid)).unwrap_or(0)),
    };
    let Some(opened) = audited_window(host, &vip, file, Some(&key)) else {
        return 0;
    };
    let thread = bpf_get_current_pid_tgid();
    if let Some(answering) = ANSWERING.get_ptr_mut(thread as u32 % ANSWERING_SLOTS) {
        let now = Answering {
            thread,
            vip,
            file,
            host,
            lock,
            reclaim: reclaim(&ctx),
            key,
            opened,
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
    let reclaim = answering.reclaim != 0;
    // If the gate did not see the call, lockd's own word counts.
    let mut is_reclaim = reclaim;
    let mut is_seen = false;
    let mut is_first = false;
    let note = noted(&answering.key, answering.opened);
    // SAFETY: an element of our map; whole words are read and written.
    let note = note.map(|note| unsafe { &mut *note });
    let has_note = note.is_some();
    if let Some(note) = note {
        is_reclaim = note.sent != 0;
        is_seen = (note.written != 0) == reclaim;
        is_first = note.is_answered == 0;
        note.is_answered = 1;
    }
    let found = match status {
        NLM_GRANTED if !has_note => violation::UNSEEN,
        NLM_GRANTED if !is_reclaim => violation::NEW_LOCK,
        NLM_BLOCKED if !has_note || !is_reclaim => violation::QUEUED,
        _ => 0,
    };
    audited(answering.vip, |audited| {
        audited.answered += is_first as u64;
        if found != 0 {
            return;
        }
        audited.unseen += !is_seen as u64;
        match (status, is_reclaim) {
            (NLM_GRANTED, _) => audited.reclaimed += 1,
            (NLM_DENIED_GRACE, false) => audited.refused += 1,
            (NLM_DENIED_GRACE, true) => audited.reclaims_refused += 1,
            (_, false) => audited.other += 1,
            (_, true) => audited.reclaims_failed += 1,
        }
    });
    if found == 0 {
        return 0;
    }
    let lock = Lock {
        vip: answering.vip,
        host: answering.host,
        file: answering.file,
        lock: answering.lock,
        xid: answering.key.xid,
        port: answering.key.port,
    };
    report(found, &lock);
    0
}

// kernel: int nlm_async_call(struct nlm_rqst *req, u32 proc, const struct rpc_call_ops *tk_ops)
// seen: 6.1 6.12 7.2 7.3
// context: lockd's thread, no lock held
//
// The grant of a blocked request, which has no grace check. nlmsvc_grant_blocked is inlined
// everywhere; this call notifies the client. A repeated notification counts as another
// violation of the same kind.
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
    if audited_window(host, &vip, 0, None).is_some() {
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

/// Records a violation, as long as there is room.
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
