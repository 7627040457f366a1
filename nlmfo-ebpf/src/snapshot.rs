//! The snapshot: what lockd holds now.
//!
//! Two independent walks see every held lock. While our own thread reads `/proc/locks`,
//! `lock_list` records each of lockd's locks, under the kernel's own lock. `walk_files` then
//! walks lockd's file table for what `/proc/locks` lacks (file handles, waiters, shares), and
//! sums up the locks on each file's inode. The tool accepts the snapshot only if both walks
//! saw the same locks.
//!
//! `walk_files` takes no kernel lock. At each step it checks that the list's links agree in
//! both directions, and gives up (`TORN`) if they do not. A change that this check misses shows
//! in the sums.

use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_loop};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::RawTracePointContext;
use core::ffi::c_void;
use nlmfo_common::Addr;
use nlmfo_common::record::{
    Control, FH_MAX, FileRecord, NAME_MAX, ShareRecord, WaiterRecord, kind, lock_digest, walk,
};

use crate::host::{self, fill};
use crate::kernel::{FileLock, UNKNOWN_FAMILY, host_vip, layout, pointer, read, read_bytes};
use crate::maps::{CONTROL, HOSTS, RECORDS};

/// The reader polls: no record needs to wake it.
const NO_WAKEUP: u64 = 1;

/// # Safety
/// Only one thread is the reader (`Control::reader`), and only programs that it started write
/// here; others only compare their thread with it. One reference at a time.
pub unsafe fn control() -> Option<&'static mut Control> {
    // SAFETY: the caller's business.
    (CONTROL.get_ptr_mut(0)).map(|control| unsafe { &mut *control })
}

pub fn current_task() -> u64 {
    // SAFETY: no arguments, no preconditions.
    unsafe { bpf_get_current_task() }
}

/// Writes one record in place; `Ok(false)` if the ring is full.
#[inline(always)]
pub fn emit<T: 'static>(fill: impl FnOnce(*mut T) -> Result<(), i32>) -> Result<bool, i32> {
    let Some(mut entry) = RECORDS.reserve::<T>(0) else {
        return Ok(false);
    };
    match fill(entry.as_mut_ptr()) {
        Ok(()) => {
            entry.submit(NO_WAKEUP);
            Ok(true)
        }
        Err(error) => {
            entry.discard(NO_WAKEUP);
            Err(error)
        }
    }
}

/// The same for a record of the list of all locks, which is counted.
#[inline(always)]
pub fn emit_listed<T: 'static>(
    control: &mut Control,
    fill: impl FnOnce(*mut T) -> Result<(), i32>,
) -> Result<bool, i32> {
    let wrote = emit(fill)?;
    if wrote {
        control.listed += 1;
    }
    Ok(wrote)
}

/// Makes the calling thread the reader. Run by the tool itself
/// (`BPF_PROG_TEST_RUN`), so it is right in any pid namespace. `args[0]` says whose locks
/// it wants to see: lockd's, or, if it is not 0, nfsd's.
// hook: none: the tool runs it (BPF_PROG_TEST_RUN)
// seen: 6.1 6.12 7.3
// context: the tool's own thread, no lock held
#[raw_tracepoint]
pub fn snapshot_begin(ctx: RawTracePointContext) -> i32 {
    // SAFETY: this program is run by the reader.
    if let Some(control) = unsafe { control() } {
        *control = Control {
            reader: current_task(),
            states: ctx.arg(0),
            ..Control::default()
        };
    }
    0
}

/// The position of the walk. Records of the bucket that an earlier run emitted are skipped by
/// count.
///
/// In a map, not on the stack: since 6.7 the verifier runs a callback until the state of the
/// stack repeats, which takes minutes for this much state. It takes map values as unknown.
#[repr(C)]
#[derive(Clone, Copy)]
struct Walk {
    at: u32,
    outcome: u32,
    one_vip: u64,
    vip: [u64; 2],
    bucket: u64,
    skip: u64,
    passed: u64,
    /// The `nlm_file`'s `f_list`.
    node: u64,
    nlm_file: u64,
    files: [u64; 2],
    inode: u64,
    /// Head and next entry of the list being walked.
    head: u64,
    entry: u64,
    locks: u64,
    digest: u64,
}

/// The kind of object that the walk is at.
mod at {
    pub const BUCKET: u32 = 0;
    pub const FILE: u32 = 1;
    pub const LOCK: u32 = 2;
    pub const WAITER: u32 = 3;
    pub const SHARE: u32 = 4;
}

/// The position of the walk within a bucket.
#[map]
static WALK: PerCpuArray<Walk> = PerCpuArray::with_max_entries(1, 0);

pub const CONTINUE: i64 = 0;
pub const STOP: i64 = 1;

/// Walks `nlm_files` from `Control::bucket` on, after the first `Control::emitted` records of
/// that bucket. Stores there how far it came, and in `Control::walk` why it stopped. A run
/// occupies its CPU, so it ends after at most `args[0]` steps. If `args[1]` is not 0, only the
/// locks of the VIP in `args[2]` and `args[3]` are summed up.
// hook: none: the tool runs it (BPF_PROG_TEST_RUN)
// seen: 6.1 6.12 7.3
// context: the tool's own thread, no lock held
#[raw_tracepoint]
pub fn walk_files(ctx: RawTracePointContext) -> i32 {
    // SAFETY: this program is run by the reader.
    let (Some(control), Some(state)) = (unsafe { control() }, WALK.get_ptr_mut(0)) else {
        return 0;
    };
    // SAFETY: this CPU's entry; only the one reader walks (`Control::reader`).
    let state = unsafe { &mut *state };
    *state = Walk {
        at: at::BUCKET,
        outcome: walk::PAUSED as u32,
        one_vip: ctx.arg(1),
        vip: [ctx.arg(2), ctx.arg(3)],
        bucket: control.bucket,
        skip: control.emitted,
        passed: 0,
        node: 0,
        nlm_file: 0,
        files: [0; 2],
        inode: 0,
        head: 0,
        entry: 0,
        locks: 0,
        digest: 0,
    };
    // SAFETY: the callback has the helper's signature and needs no context.
    unsafe {
        bpf_loop(
            ctx.arg(0),
            walk_step as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
    }
    control.bucket = state.bucket;
    control.emitted = state.passed;
    control.walk = state.outcome as u64;
    0
}

extern "C" fn walk_step(_index: u64, _context: *mut c_void) -> i64 {
    let Some(state) = WALK.get_ptr_mut(0) else {
        return STOP;
    };
    // SAFETY: this CPU's entry; only the one reader walks (`Control::reader`).
    let state = unsafe { &mut *state };
    let step = match state.at {
        at::BUCKET => walk_bucket(state),
        at::FILE => walk_file(state),
        at::LOCK => walk_lock(state),
        at::WAITER => walk_waiter(state),
        _ => walk_share(state),
    };
    step.unwrap_or_else(|_| {
        let outcome = walk::FAULT + state.at as u64;
        end(state, outcome)
    })
}

#[inline(always)]
fn end(state: &mut Walk, outcome: u64) -> i64 {
    state.outcome = outcome as u32;
    STOP
}

/// Emits a record unless an earlier run did. False if the ring is full.
#[inline(always)]
fn pass<T: 'static>(
    state: &mut Walk,
    fill: impl FnOnce(*mut T) -> Result<(), i32>,
) -> Result<bool, i32> {
    if state.passed >= state.skip && !emit(fill)? {
        return Ok(false);
    }
    state.passed += 1;
    Ok(true)
}

/// Whether a `list_head` at `node` is still linked to its successor both ways.
#[inline(always)]
fn linked(node: u64, next: u64) -> Result<bool, i32> {
    Ok(pointer(next, 8)? == node)
}

/// Starts the bucket `state.bucket`, or ends the walk.
#[inline(always)]
fn walk_bucket(state: &mut Walk) -> Result<i64, i32> {
    if state.bucket >= layout!(nlm_files_buckets) as u64 {
        return Ok(end(state, walk::DONE));
    }
    // hlist_head: first.
    state.node = pointer(layout!(nlm_files) + state.bucket * 8, 0)?;
    state.at = at::FILE;
    Ok(CONTINUE)
}

/// Starts the `nlm_file` at `state.node`, or moves to the next bucket.
#[inline(always)]
fn walk_file(state: &mut Walk) -> Result<i64, i32> {
    if state.node == 0 {
        state.bucket += 1;
        state.skip = 0;
        state.passed = 0;
        state.at = at::BUCKET;
        return Ok(CONTINUE);
    }
    // hlist_node: next, pprev; *pprev must lead back here.
    let pprev = pointer(state.node, 8)?;
    if pointer(pprev, 0)? != state.node {
        return Ok(end(state, walk::TORN));
    }
    let nlm_file = state.node - layout!(nlm_file_list) as u64;
    let files: [u64; 2] = read(nlm_file, layout!(nlm_file_file))?;
    let file = if files[0] != 0 { files[0] } else { files[1] };
    if file == 0 {
        // Not open in any mode: it has no locks.
        state.node = pointer(state.node, 0)?;
        return Ok(CONTINUE);
    }
    let inode = pointer(file, layout!(file_inode))?;
    let flctx = pointer(inode, layout!(inode_flctx))?;

    state.nlm_file = nlm_file;
    state.files = files;
    state.inode = inode;
    state.locks = 0;
    state.digest = 0;
    state.at = at::LOCK;
    if flctx == 0 {
        state.head = 0;
        state.entry = 0;
    } else {
        state.head = flctx + layout!(flctx_posix) as u64;
        state.entry = pointer(state.head, 0)?;
    }
    Ok(CONTINUE)
}

/// Whether the host of `owner` uses the VIP.
#[inline(always)]
fn has_vip(owner: u64, vip: [u64; 2]) -> Result<bool, i32> {
    let host = pointer(owner, layout!(lockowner_host))?;
    match host_vip(host) {
        // SAFETY: both are 16 plain bytes.
        Ok(Addr(bytes)) => Ok(unsafe { core::mem::transmute::<[u8; 16], [u64; 2]>(bytes) } == vip),
        Err(UNKNOWN_FAMILY) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Sums up one POSIX lock of the inode, or, at the list's end, emits the file.
#[inline(always)]
fn walk_lock(state: &mut Walk) -> Result<i64, i32> {
    if state.entry != state.head {
        let lock = FileLock::read(state.entry - layout!(fl_list) as u64)?;
        if pointer(lock.prev(), 0)? != state.entry {
            return Ok(end(state, walk::TORN));
        }
        // Two file handles may lead to one inode: a lock belongs to the nlm_file through
        // which it was taken.
        let file = lock.file();
        if lock.is_lockds()
            && (file == state.files[0] || file == state.files[1])
            && (state.one_vip == 0 || has_vip(lock.owner(), state.vip)?)
        {
            state.locks += 1;
            state.digest = state.digest.wrapping_add(lock_digest(
                lock.base(),
                lock.owner(),
                lock.start(),
                lock.end(),
                lock.mode(),
            ));
        }
        state.entry = lock.next();
        return Ok(CONTINUE);
    }

    let file = state.nlm_file;
    let (files, inode, locks, digest) = (state.files, state.inode, state.locks, state.digest);
    let bucket = state.bucket as u32;
    let room = pass(state, |record: *mut FileRecord| {
        let sb = pointer(inode, layout!(inode_sb))?;
        fill!(record, {
            kind: kind::FILE,
            dev: read(sb, layout!(sb_dev))?,
            nlm_file: file,
            files: files,
            ino: read(inode, layout!(inode_ino))?,
            locks: locks,
            digest: digest,
            fh_len: read::<u16>(file, layout!(nlm_file_fh_size))? as u32,
            bucket: bucket,
        });
        // SAFETY: as in `fill!`.
        let fh = unsafe { &raw mut (*record).fh };
        read_bytes(fh, FH_MAX as u32, file + layout!(nlm_file_fh_data) as u64)
    })?;
    if !room {
        return Ok(end(state, walk::PAUSED));
    }
    state.head = state.nlm_file + layout!(nlm_file_blocks) as u64;
    state.entry = pointer(state.head, 0)?;
    state.at = at::WAITER;
    Ok(CONTINUE)
}

/// Emits one blocked request of the file, or moves to its shares.
#[inline(always)]
fn walk_waiter(state: &mut Walk) -> Result<i64, i32> {
    if state.entry == state.head {
        state.entry = pointer(state.nlm_file, layout!(nlm_file_shares))?;
        state.at = at::SHARE;
        return Ok(CONTINUE);
    }
    let next = pointer(state.entry, 0)?;
    if !linked(state.entry, next)? {
        return Ok(end(state, walk::TORN));
    }
    let block = state.entry - layout!(block_flist) as u64;
    let granted = read::<u8>(block, layout!(block_granted))?;
    let list = block + layout!(block_list) as u64;
    // Granted, and no longer in lockd's list of requests: the lock was released, and the
    // request stays only until the call that notifies its client ends.
    if granted != 0 && pointer(list, 0)? == list {
        state.entry = next;
        return Ok(CONTINUE);
    }
    let call = pointer(block, layout!(block_call))?;
    let lock = FileLock::read(call + layout!(rqst_lock_fl) as u64)?;
    let file = state.nlm_file;
    let room = pass(state, |record: *mut WaiterRecord| {
        fill!(record, {
            kind: kind::WAITER,
            mode: lock.mode(),
            block: block,
            nlm_file: file,
            host: pointer(block, layout!(block_host))?,
            start: lock.start(),
            end: lock.end(),
            svid: read(call, layout!(rqst_lock_svid))?,
            granted: granted as u32,
        });
        Ok(())
    })?;
    if !room {
        return Ok(end(state, walk::PAUSED));
    }
    state.entry = next;
    Ok(CONTINUE)
}

/// Emits one DOS share of the file, or moves to the next file.
#[inline(always)]
fn walk_share(state: &mut Walk) -> Result<i64, i32> {
    if state.entry == 0 {
        state.node = pointer(state.node, 0)?;
        state.at = at::FILE;
        return Ok(CONTINUE);
    }
    let share = state.entry;
    let file = state.nlm_file;
    let room = pass(state, |record: *mut ShareRecord| {
        let owner_len: u32 = read(share, layout!(share_owner_len))?;
        fill!(record, {
            kind: kind::SHARE,
            access: read(share, layout!(share_access))?,
            mode: read(share, layout!(share_mode))?,
            owner_len: owner_len,
            nlm_file: file,
            host: pointer(share, layout!(share_host))?,
            owner: [0; NAME_MAX],
        });
        // SAFETY: as in `fill!`.
        let owner = unsafe { &raw mut (*record).owner };
        read_bytes(owner, owner_len, pointer(share, layout!(share_owner_data))?)
    })?;
    if !room {
        return Ok(end(state, walk::PAUSED));
    }
    state.entry = pointer(share, layout!(share_next))?;
    Ok(CONTINUE)
}

/// Emits the [`HostRecord`] of each of the first `args[0]` `nlm_host`s in `HOSTS`.
// hook: none: the tool runs it (BPF_PROG_TEST_RUN)
// seen: 6.1 6.12 7.3
// context: the tool's own thread, no lock held
#[raw_tracepoint]
pub fn read_hosts(ctx: RawTracePointContext) -> i32 {
    // SAFETY: the callback has the helper's signature and needs no context.
    unsafe {
        bpf_loop(
            ctx.arg(0),
            read_host as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
    }
    0
}

extern "C" fn read_host(index: u64, _context: *mut c_void) -> i64 {
    // SAFETY: the program that loops is run by the reader.
    let (Some(control), Some(hosts)) = (unsafe { control() }, HOSTS.get(0)) else {
        return STOP;
    };
    let Some(&host) = hosts.get(index as usize) else {
        return STOP;
    };
    // A host that cannot be read was freed in the meantime. The tool misses its record and
    // takes the snapshot again.
    if emit(|record| host::describe(host, record)) == Ok(false) {
        control.lost += 1;
    }
    CONTINUE
}
