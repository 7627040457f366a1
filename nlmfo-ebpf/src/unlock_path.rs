//! Records what clients give up: also UNLOCK calls that lockd refuses in grace, and calls for state
//! that nfsd no longer knows. Attached only while reclaims are followed.

use aya_ebpf::macros::{kprobe, map};
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use aya_ebpf::programs::ProbeContext;
use nlmfo_common::unlock::{FH3_MAX, Unlock3, Unlock4};

use crate::host::fill;
use crate::kernel::{layout, pointer, read, read_bytes, sockaddr};

/// Bytes of a stateid's generation, which come first.
const GENERATION: u32 = 4;

/// The set of UNLOCK calls. If one is evicted, the client sends it again as long as lockd refuses it.
#[map]
pub static UNLOCKS3: LruHashMap<Unlock3, u8> = LruHashMap::with_max_entries(4096, 0);

/// Memory for the key, which is too large for the stack.
#[map]
pub static UNLOCK3: PerCpuArray<Unlock3> = PerCpuArray::with_max_entries(1, 0);

/// The set of LOCKU and CLOSE calls. A client sends such a call only once, so there is room for the
/// calls of many clients.
#[map]
pub static UNLOCKS4: LruHashMap<Unlock4, u8> = LruHashMap::with_max_entries(65536, 0);

// kernel: __be32 nlm4svc_proc_unlock(struct svc_rqst *rqstp)
// seen: 6.1 6.12 7.2 7.3
// context: lockd's thread, no lock held
#[kprobe]
pub fn unlock3_asked(ctx: ProbeContext) -> u32 {
    if let Some(rqstp) = ctx.arg::<u64>(0) {
        let _ = note3(rqstp);
    }
    0
}

#[inline(always)]
fn note3(rqstp: u64) -> Result<(), i32> {
    let argp = pointer(rqstp, layout!(unlocks.nfs3.rqst_argp))?;
    let fh_size = match layout!(unlocks.nfs3.fh_size_bytes) {
        2 => read::<u16>(argp, layout!(unlocks.nfs3.fh_size))? as u32,
        _ => read::<u32>(argp, layout!(unlocks.nfs3.fh_size))?,
    };
    let key = UNLOCK3.get_ptr_mut(0).ok_or(-1)?;
    fill!(key, {
        vip: sockaddr(rqstp + layout!(unlocks.nfs3.rqst_daddr) as u64)?,
        client: sockaddr(rqstp + layout!(unlocks.nfs3.rqst_addr) as u64)?,
        start: read(argp, layout!(unlocks.nfs3.start))?,
        len: read(argp, layout!(unlocks.nfs3.len))?,
        svid: read(argp, layout!(unlocks.nfs3.svid))?,
        fh_size: fh_size,
        fh: [0; FH3_MAX],
    });
    let fh = match layout!(unlocks.nfs3.fh_is_pointer) {
        0 => argp + layout!(unlocks.nfs3.fh) as u64,
        _ => pointer(argp, layout!(unlocks.nfs3.fh))?,
    };
    // SAFETY: this CPU's value, of the one program that uses it.
    let place = unsafe { &raw mut (*key).fh };
    read_bytes(place, fh_size, fh)?;
    // SAFETY: as above.
    add(&UNLOCKS3, unsafe { &*key })
}

// kernel: __be32 nfsd4_locku(struct svc_rqst *rqstp, struct nfsd4_compound_state *cstate, union nfsd4_op_u *u)
// seen: 6.1 6.12 7.3
// context: nfsd's thread, no lock held
#[kprobe]
pub fn locku_asked(ctx: ProbeContext) -> u32 {
    if let Some(locku) = ctx.arg::<u64>(2) {
        let _ = locku_of(locku).and_then(|key| add(&UNLOCKS4, &key));
    }
    0
}

// kernel: __be32 nfsd4_close(struct svc_rqst *rqstp, struct nfsd4_compound_state *cstate, union nfsd4_op_u *u)
// seen: 6.1 6.12 7.3
// context: nfsd's thread, no lock held
#[kprobe]
pub fn close_asked(ctx: ProbeContext) -> u32 {
    if let Some(close) = ctx.arg::<u64>(2) {
        let _ = close_of(close).and_then(|key| add(&UNLOCKS4, &key));
    }
    0
}

#[inline(always)]
fn locku_of(locku: u64) -> Result<Unlock4, i32> {
    Ok(Unlock4 {
        start: read(locku, layout!(unlocks.nfs4.locku_start))?,
        len: read(locku, layout!(unlocks.nfs4.locku_len))?,
        state: read(locku, layout!(unlocks.nfs4.locku_stateid) + GENERATION)?,
        closes: 0,
    })
}

#[inline(always)]
fn close_of(close: u64) -> Result<Unlock4, i32> {
    Ok(Unlock4 {
        start: 0,
        len: 0,
        state: read(close, layout!(unlocks.nfs4.close_stateid) + GENERATION)?,
        closes: 1,
    })
}

#[inline(always)]
fn add<K>(set: &LruHashMap<K, u8>, key: &K) -> Result<(), i32> {
    // To insert it again could evict another.
    if set.get_ptr(key).is_some() {
        return Ok(());
    }
    set.insert(key, 1, 0).map_err(|_| -1)
}
