//! The kernel's lists of all locks, as `/proc/locks` shows them.
//!
//! A read of `/proc/locks` returns at most one page of text, and for each page the kernel
//! walks the list from its start: reading all of it costs the square of the number of locks.
//! While the kernel shows the first lock, it holds the locks that keep the lists from
//! changing. `show` uses that: it walks the lists itself for a limited time
//! (`Control::limit`), and continues there in the next read. If the lists cannot be found,
//! `show` writes one lock per call.

use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_loop};
use aya_ebpf::macros::kprobe;
use aya_ebpf::programs::ProbeContext;
use core::ffi::c_void;
use nlmfo_common::record::{Control, LockRecord, kind, list};

use crate::host::fill;
use crate::kernel::{FileLock, layout, pointer, read};
use crate::snapshot::{CONTINUE, STOP, control, current_task, emit_listed};
use crate::states;

/// Maximum number of steps in a run; the time limit ends it long before.
const MAX_STEPS: u32 = 1 << 20;
/// Steps between two reads of the clock: about ten microseconds.
const STEPS_PER_LOOK: u64 = 32;

// kernel: int locks_show(struct seq_file *f, void *v)
// seen: 6.1 6.12 7.2 7.3
// context: process, under blocked_lock_lock and file_rwsem
#[kprobe]
pub fn show(ctx: ProbeContext) -> u32 {
    // SAFETY: nothing but a comparison unless it is the reader's.
    let Some(control) = (unsafe { control() }) else {
        return 0;
    };
    if control.reader != current_task() {
        return 0;
    }
    control.shown += 1;
    let Some(link) = ctx.arg::<u64>(1) else {
        return 0;
    };
    match control.list {
        list::ONE_BY_ONE => {
            let Ok(lock) = FileLock::read(link - layout!(fl_link) as u64) else {
                control.lost += 1;
                return 0;
            };
            if show_lock(control, &lock) != Ok(true) {
                control.lost += 1;
            }
            if control.states != 0 {
                show_all_waiters(control, &lock);
            }
        }
        list::WALK => walk(control, link),
        _ => {}
    }
    0
}

/// Continues the walk for at most `Control::limit`. `first` is the first lock of the kernel's
/// own walk.
#[inline(always)]
fn walk(control: &mut Control, first: u64) {
    // SAFETY: no arguments, no preconditions.
    let began = unsafe { bpf_ktime_get_ns() };
    control.until = began + control.limit;
    control.list = list::PAUSED;
    let [last, next] = control.passed;
    if last != 0 {
        if is_in_place(last, next, control.cpu) != Ok(true) {
            control.list = list::TORN;
            return;
        }
        if control.waiter != 0 && again_or_cut(control, last).is_err() {
            control.list = list::TORN;
            return;
        }
    } else if control.cpu == 0 {
        control.first = first;
    }
    // SAFETY: the callback has the helper's signature and needs no context.
    unsafe {
        bpf_loop(MAX_STEPS, step as *mut c_void, core::ptr::null_mut(), 0);
    }
    // SAFETY: as above.
    let took = unsafe { bpf_ktime_get_ns() } - began;
    if took > control.longest {
        control.longest = took;
    }
}

/// Whether the `hlist_node` is still in the list of that CPU and has the same successor. New
/// locks are added at the head, so the successors of a node stay the same as long as the node
/// stays. After a node was removed and added again, the walk sees locks twice, never too few.
#[inline(always)]
fn is_in_place(node: u64, next: u64, cpu: u64) -> Result<bool, i32> {
    let lock = node - layout!(fl_link) as u64;
    Ok(pointer(pointer(node, 8)?, 0)? == node
        && pointer(node, 0)? == next
        && read::<u32>(lock, layout!(lock_lists.link_cpu))? as u64 == cpu)
}

extern "C" fn step(index: u64, _context: *mut c_void) -> i64 {
    // SAFETY: `show` found that it is the reader's, and uses its own reference only when this
    // has returned.
    let Some(control) = (unsafe { control() }) else {
        return STOP;
    };
    // Requests behind one lock are read in one run.
    if control.waiter == 0 && index % STEPS_PER_LOOK == STEPS_PER_LOOK - 1 {
        // SAFETY: no arguments, no preconditions.
        let now = unsafe { bpf_ktime_get_ns() };
        if now >= control.until {
            return STOP;
        }
    }
    let step = match control.waiter {
        0 => step_on(control),
        _ => step_waiter(control),
    };
    step.unwrap_or_else(|_| {
        control.list = list::TORN;
        STOP
    })
}

/// Handles one lock, or moves to the next CPU's list.
#[inline(always)]
fn step_on(control: &mut Control) -> Result<i64, i32> {
    let [last, mut node] = control.passed;
    if last == 0 {
        if control.cpu >= layout!(lock_lists.cpus) as u64 {
            control.list = match control.first {
                0 => list::DONE,
                _ => list::UNKNOWN,
            };
            return Ok(STOP);
        }
        let offset = pointer(layout!(lock_lists.offsets) + 8 * control.cpu, 0)?;
        let variable = layout!(lock_lists.variable).wrapping_add(offset);
        // hlist_head: first.
        node = pointer(variable, layout!(lock_lists.head))?;
        if node != 0 && control.first != 0 {
            if node != control.first {
                control.list = list::UNKNOWN;
                return Ok(STOP);
            }
            control.first = 0;
        }
    }
    if node == 0 {
        control.cpu += 1;
        control.passed = [0; 2];
        control.listed = 0;
        return Ok(CONTINUE);
    }
    let lock = FileLock::read(node - layout!(fl_link) as u64)?;
    let next = lock.next_of_all();
    match show_lock(control, &lock) {
        Ok(true) => {}
        // The ring is full: the next run writes this lock again.
        Ok(false) => return Ok(STOP),
        Err(_) => control.lost += 1,
    }
    control.passed = [node, next];
    if control.states != 0 {
        control.waiter = first_waiter(control, &lock)?;
    }
    Ok(CONTINUE)
}

/// Marks a request whose own requests were handled: what comes next is behind it in the same
/// list, or above it. A `file_lock` is aligned to 8 bytes.
const HANDLED: u64 = 1;

/// The first request that waits behind the lock, or 0. Requests that conflict with each other
/// wait behind each other, so that they form a tree (`locks_insert_block`, fs/locks.c).
#[inline(always)]
fn first_waiter(control: &mut Control, lock: &FileLock) -> Result<u64, i32> {
    let first = lock.first_waiting();
    if first == lock.waiting_head() || first == 0 {
        return Ok(0);
    }
    control.waited_inode = pointer(lock.file(), layout!(file_inode))?;
    Ok(first - layout!(states.blocked_member) as u64)
}

/// The last run ended among the requests behind the lock at `node`: it is read again from its first
/// request, now that the ring buffer is empty. If that was not enough either, the rest is left out.
#[inline(always)]
fn again_or_cut(control: &mut Control, node: u64) -> Result<(), i32> {
    if control.waited != 0 {
        control.waited = 0;
        control.waiter = 0;
        control.cut = 1;
        return Ok(());
    }
    control.waited = 1;
    let lock = FileLock::read(node - layout!(fl_link) as u64)?;
    control.waiter = first_waiter(control, &lock)?;
    Ok(())
}

/// Writes one request, or goes from one that was written to the next.
#[inline(always)]
fn step_waiter(control: &mut Control) -> Result<i64, i32> {
    let request = control.waiter & !HANDLED;
    if control.waiter & HANDLED == 0 {
        let lock = FileLock::read(request)?;
        let inode = control.waited_inode;
        match states::show_waiter(control, &lock, inode) {
            Ok(true) => {}
            // The ring is full.
            Ok(false) => return Ok(STOP),
            Err(_) => control.lost += 1,
        }
        control.waiter = match lock.first_waiting() {
            first if first == lock.waiting_head() => request | HANDLED,
            first => first - layout!(states.blocked_member) as u64,
        };
        return Ok(CONTINUE);
    }
    let blocker = pointer(request, layout!(states.blocker))?;
    let next = pointer(request, layout!(states.blocked_member))?;
    if next != blocker + layout!(states.blocked_requests) as u64 {
        control.waiter = next - layout!(states.blocked_member) as u64;
        return Ok(CONTINUE);
    }
    // The lock itself waits for nothing.
    if pointer(blocker, layout!(states.blocker))? == 0 {
        control.waiter = 0;
        control.waited = 0;
        return Ok(CONTINUE);
    }
    control.waiter = blocker | HANDLED;
    Ok(CONTINUE)
}

/// Writes all requests behind the lock that is shown; with one lock per call.
#[inline(always)]
fn show_all_waiters(control: &mut Control, lock: &FileLock) {
    match first_waiter(control, lock) {
        Ok(waiter) => control.waiter = waiter,
        Err(_) => control.lost += 1,
    }
    if control.waiter == 0 {
        return;
    }
    // SAFETY: the callback has the helper's signature and needs no context.
    unsafe {
        bpf_loop(
            MAX_STEPS,
            waiter_alone as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
    }
    if control.waiter != 0 {
        control.waiter = 0;
        control.cut = 1;
    }
}

extern "C" fn waiter_alone(_index: u64, _context: *mut c_void) -> i64 {
    // SAFETY: as in `step`.
    let Some(control) = (unsafe { control() }) else {
        return STOP;
    };
    match control.waiter {
        0 => STOP,
        _ => step_waiter(control).unwrap_or(STOP),
    }
}

/// Writes the lock if it is wanted. False if the ring is full.
#[inline(always)]
fn show_lock(control: &mut Control, lock: &FileLock) -> Result<bool, i32> {
    if control.states != 0 {
        return states::show_range(control, lock);
    }
    if !lock.is_lockds() {
        return Ok(true);
    }
    let owner = lock.owner();
    emit_listed(control, |record: *mut LockRecord| {
        fill!(record, {
            kind: kind::LOCK,
            mode: lock.mode(),
            fl: lock.base(),
            owner: owner,
            host: pointer(owner, layout!(lockowner_host))?,
            file: lock.file(),
            start: lock.start(),
            end: lock.end(),
            svid: read(owner, layout!(lockowner_svid))?,
            pad: 0,
        });
        Ok(())
    })
}
