//! Notes what clients give up, also while lockd is in grace and refuses every UNLOCK before it
//! looks at it. Attached only while reclaims are followed.

use aya_ebpf::macros::{kprobe, map};
use aya_ebpf::maps::{LruHashMap, PerCpuArray};
use aya_ebpf::programs::ProbeContext;
use nlmfo_common::unlock::{FH3_MAX, Unlock};

use crate::host::fill;
use crate::kernel::{layout, pointer, read, read_bytes, sockaddr};

/// UNLOCK calls. One that is evicted is sent again as long as lockd refuses it.
#[map]
pub static UNLOCKS: LruHashMap<Unlock, u64> = LruHashMap::with_max_entries(4096, 0);

/// Where the key is put together: it is too large for the stack.
#[map]
pub static UNLOCK: PerCpuArray<Unlock> = PerCpuArray::with_max_entries(1, 0);

// kernel: __be32 nlm4svc_proc_unlock(struct svc_rqst *rqstp)
// seen: 6.1 6.12 7.2 7.3
// context: lockd's thread, no lock held
#[kprobe]
pub fn unlock_asked(ctx: ProbeContext) -> u32 {
    if let Some(rqstp) = ctx.arg::<u64>(0) {
        let _ = note(rqstp);
    }
    0
}

#[inline(always)]
fn note(rqstp: u64) -> Result<(), i32> {
    let argp = pointer(rqstp, layout!(unlocks.rqst_argp))?;
    let fh_size = match layout!(unlocks.fh_size_bytes) {
        2 => read::<u16>(argp, layout!(unlocks.fh_size))? as u32,
        _ => read::<u32>(argp, layout!(unlocks.fh_size))?,
    };
    let key = UNLOCK.get_ptr_mut(0).ok_or(-1)?;
    fill!(key, {
        vip: sockaddr(rqstp + layout!(unlocks.rqst_daddr) as u64)?,
        client: sockaddr(rqstp + layout!(unlocks.rqst_addr) as u64)?,
        start: read(argp, layout!(unlocks.start))?,
        len: read(argp, layout!(unlocks.len))?,
        svid: read(argp, layout!(unlocks.svid))?,
        fh_size: fh_size,
        fh: [0; FH3_MAX],
    });
    let fh = match layout!(unlocks.fh_is_pointer) {
        0 => argp + layout!(unlocks.fh) as u64,
        _ => pointer(argp, layout!(unlocks.fh))?,
    };
    // SAFETY: this CPU's value, of the one program that uses it.
    let place = unsafe { &raw mut (*key).fh };
    read_bytes(place, fh_size, fh)?;
    // SAFETY: as above.
    let key: &Unlock = unsafe { &*key };
    if let Some(calls) = UNLOCKS.get_ptr_mut(key) {
        // SAFETY: an element of our map; a lost addition is one of many.
        unsafe { *calls += 1 };
        return Ok(());
    }
    UNLOCKS.insert(key, 1, 0).map_err(|_| -1)
}
