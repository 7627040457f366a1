//! Counters of nfsd's NFSv4 operations, per VIP. These programs run for every OPEN and LOCK of
//! every client: no loops, a few reads of kernel memory per probe, per-CPU counters.

use aya_ebpf::helpers::bpf_get_current_pid_tgid;
use aya_ebpf::macros::{kprobe, kretprobe};
use aya_ebpf::programs::{ProbeContext, RetProbeContext};
use nlmfo_common::Addr;
use nlmfo_common::counters::Counters4;

use crate::kernel::{UNKNOWN_FAMILY, layout, pointer, read, sockaddr};
use crate::maps::{CALLS4, COUNTERS4, Call4, HANDLES_REFUSED4, NO_COUNTS4, UNCOUNTED4};

/// NFSv4's status codes (RFC 8881, 15.1).
const OK: u32 = 0;
const DELAY: u32 = 10008;
const DENIED: u32 = 10010;
const GRACE: u32 = 10013;
const NO_GRACE: u32 = 10033;
const RECLAIM_BAD: u32 = 10034;

/// `CLAIM_PREVIOUS`: an OPEN that is a reclaim.
const CLAIM_PREVIOUS: u32 = 1;

/// The counters of a VIP; counts the event as uncounted if there are none.
#[inline(always)]
fn counters(vip: Result<Addr, i32>) -> Option<&'static mut Counters4> {
    let counters = vip.ok().and_then(|vip| {
        COUNTERS4.get_ptr_mut(vip).or_else(|| {
            // BPF_NOEXIST: another CPU may have been quicker.
            let _ = COUNTERS4.insert(vip, NO_COUNTS4.get(0)?, 1);
            COUNTERS4.get_ptr_mut(vip)
        })
    });
    if counters.is_none()
        && let Some(uncounted) = UNCOUNTED4.get_ptr_mut(0)
    {
        // SAFETY: our array's only element; a count lost to another CPU still
        // leaves it above 0.
        unsafe { *uncounted += 1 };
    }
    // SAFETY: this CPU's value; programs on a CPU do not preempt one another's
    // increments in a way that tears an aligned u64.
    counters.map(|counters| unsafe { &mut *counters })
}

/// Stores the call's arguments until it returns.
#[inline(always)]
fn enter(ctx: &ProbeContext) -> u32 {
    if let (Some(request), Some(operation)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(2)) {
        let call = Call4 { request, operation };
        let _ = CALLS4.insert(bpf_get_current_pid_tgid(), call, 0);
    }
    0
}

/// The operation of the call that returns, and the counters of its VIP.
#[inline(always)]
fn leave() -> Option<(u64, &'static mut Counters4)> {
    let thread = bpf_get_current_pid_tgid();
    // SAFETY: an element of our map, of this thread alone.
    let call = unsafe { *CALLS4.get_ptr(thread)? };
    let _ = CALLS4.remove(thread);
    let vip = sockaddr(call.request + layout!(states.rqst_daddr) as u64);
    Some((call.operation, counters(vip)?))
}

// kernel: __be32 nfsd4_open(struct svc_rqst *rqstp, struct nfsd4_compound_state *cstate, union nfsd4_op_u *u)
// seen: 6.1 6.12 7.3
// context: nfsd's thread, no lock held
#[kprobe]
pub fn open4_enter(ctx: ProbeContext) -> u32 {
    enter(&ctx)
}

// kernel: __be32 nfsd4_open(...)
// seen: 6.1 6.12 7.3
// context: nfsd's thread, no lock held; the status is in network byte order
#[kretprobe]
pub fn open4_return(ctx: RetProbeContext) -> u32 {
    let Some((open, counters)) = leave() else {
        return 0;
    };
    let claim = read::<u32>(open, layout!(states.open_claim)).unwrap_or(0);
    match u32::from_be(ctx.ret::<u32>()) {
        OK => {
            match claim {
                CLAIM_PREVIOUS => counters.opens_reclaimed += 1,
                _ => counters.opens += 1,
            }
            // `OPEN_DELEGATE_*`: 1 and 2 read and write, 4 and 5 the same with times.
            let given = read::<u32>(open, layout!(states.open_delegation)).unwrap_or(0);
            if matches!(given, 1 | 2 | 4 | 5) {
                counters.delegations += 1;
            }
        }
        GRACE => counters.opens_in_grace += 1,
        // Its client asks again.
        DELAY => {}
        _ if claim == CLAIM_PREVIOUS => counters.reclaims_refused += 1,
        _ => {}
    }
    0
}

// kernel: __be32 nfsd4_lock(struct svc_rqst *rqstp, struct nfsd4_compound_state *cstate, union nfsd4_op_u *u)
// seen: 6.1 6.12 7.3
// context: nfsd's thread, no lock held
#[kprobe]
pub fn lock4_enter(ctx: ProbeContext) -> u32 {
    enter(&ctx)
}

// kernel: __be32 nfsd4_lock(...)
// seen: 6.1 6.12 7.3
// context: nfsd's thread, no lock held; the status is in network byte order
#[kretprobe]
pub fn lock4_return(ctx: RetProbeContext) -> u32 {
    let Some((lock, counters)) = leave() else {
        return 0;
    };
    let reclaim = read::<u32>(lock, layout!(states.lock_reclaim)).unwrap_or(0);
    let status = u32::from_be(ctx.ret::<u32>());
    if reclaim != 0 && status != OK && status != DELAY {
        counters.reclaims_refused += 1;
    }
    match status {
        OK if reclaim != 0 => counters.locks_reclaimed += 1,
        OK => counters.locks += 1,
        DENIED | NO_GRACE | RECLAIM_BAD => counters.locks_denied += 1,
        GRACE => counters.locks_in_grace += 1,
        _ => {}
    }
    0
}

// kernel: __be32 nfsd4_putfh(struct svc_rqst *rqstp, struct nfsd4_compound_state *cstate, union nfsd4_op_u *u)
// seen: 6.1 6.12 7.3
// context: nfsd's thread, no lock held; the status is in network byte order
//
// A client names the file of each reclaim first: if its handle is refused, no OPEN follows.
#[kretprobe]
pub fn putfh4_return(ctx: RetProbeContext) -> u32 {
    let status = u32::from_be(ctx.ret::<u32>());
    if status != OK
        && status != DELAY
        && let Some(refused) = HANDLES_REFUSED4.get_ptr_mut(0)
    {
        // SAFETY: as that of `UNCOUNTED4`.
        unsafe { *refused += 1 };
    }
    0
}

/// A VIP of a client. For 4.0 the address to which it sent SETCLIENTID; for 4.1 and newer that
/// of one of its connections, or zeros if it has none.
#[inline(always)]
fn client_vip(client: u64) -> Result<Addr, i32> {
    match sockaddr(client + layout!(states.client_cb_saddr) as u64) {
        Ok(vip) if vip.0 != [0; 16] => return Ok(vip),
        Ok(_) | Err(UNKNOWN_FAMILY) => {}
        Err(error) => return Err(error),
    }
    let sessions = client + layout!(states.client_sessions) as u64;
    let first = pointer(sessions, 0)?;
    if first == sessions {
        return Ok(Addr([0; 16]));
    }
    let conns = first - layout!(states.session_list) as u64 + layout!(states.session_conns) as u64;
    let conn = pointer(conns, 0)?;
    if conn == conns {
        return Ok(Addr([0; 16]));
    }
    let xprt = pointer(
        conn - layout!(states.conn_list) as u64,
        layout!(states.conn_xprt),
    )?;
    sockaddr(xprt + layout!(states.xprt_local) as u64)
}

// kernel: bool nfsd_break_deleg_cb(struct file_lock *fl)
// seen: 6.1
// kernel: bool nfsd_break_deleg_cb(struct file_lease *fl)
// seen: 6.12 7.3
// context: the thread that wants the file, flc_lock held
#[kprobe]
pub fn delegation_recalled(ctx: ProbeContext) -> u32 {
    let Some(lease) = ctx.arg::<u64>(0) else {
        return 0;
    };
    let vip = pointer(lease, layout!(fl_owner))
        .and_then(|state| pointer(state, layout!(states.stid_client)))
        .and_then(client_vip);
    if let Some(counters) = counters(vip) {
        counters.recalled += 1;
    }
    0
}

// kernel: void expire_client(struct nfs4_client *clp)
// seen: 6.1 6.12 7.3
// context: nfsd's threads and its laundromat, no lock held
//
// Also for a client that leaves (DESTROY_CLIENTID) or returns with another client ID.
#[kprobe]
pub fn client_ended(ctx: ProbeContext) -> u32 {
    let Some(client) = ctx.arg::<u64>(0) else {
        return 0;
    };
    if let Some(counters) = counters(client_vip(client)) {
        counters.clients_ended += 1;
    }
    0
}
