//! What `/proc/locks` shows, seen from inside the kernel.

use aya_ebpf::{macros::kprobe, programs::ProbeContext};

use crate::{layout::layout, maps::LOCKS_SHOWN};

// static int locks_show(struct seq_file *f, void *v)   fs/locks.c, 6.1 to 6.12
#[kprobe]
pub fn locks_show(_ctx: ProbeContext) -> u32 {
    if layout!(nlm_files) == 0 {
        return 0;
    }
    if let Some(count) = LOCKS_SHOWN.get_ptr_mut(0) {
        // SAFETY: the map's own value, alive as long as the program.
        unsafe { *count += 1 };
    }
    0
}
