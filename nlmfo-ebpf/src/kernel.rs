//! Accessors for the kernel's structs. The loader takes the offsets from BTF.

use nlmfo_common::Addr;
use nlmfo_common::layout::{FL_SPAN_MAX, Layout};

use nlmfo_ebpf::memory;

use crate::maps::FILE_LOCK;

/// Set by the loader before the programs are verified; read-only afterwards.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout::UNSET;

/// A field of [`LAYOUT`].
macro_rules! layout {
    ($($field:ident).+) => {
        nlmfo_ebpf::field!($crate::kernel::LAYOUT, $($field).+)
    };
}
pub(crate) use layout;

pub use nlmfo_ebpf::memory::{UNKNOWN_FAMILY, pointer, read, read_bytes, read_name};

/// A `sockaddr_storage` that holds an IPv4 or IPv6 address.
#[inline(always)]
pub fn sockaddr(at: u64) -> Result<Addr, i32> {
    memory::sockaddr(at).map(|(addr, _)| addr)
}

/// The VIP of a `nlm_host`.
#[inline(always)]
pub fn host_vip(host: u64) -> Result<Addr, i32> {
    sockaddr(host + layout!(host_srcaddr) as u64)
}

/// The bytes of a `file_lock` with the fields that are read: one copy instead of a helper call per
/// field. They are in a per-CPU map, since the stack is small; only a snapshot's single reader copies
/// locks.
pub struct FileLock {
    base: u64,
    bytes: &'static [u8; FL_SPAN_MAX],
}

impl FileLock {
    /// Copies the `file_lock` at `base`.
    #[inline(always)]
    pub fn read(base: u64) -> Result<Self, i32> {
        let scratch = FILE_LOCK.get_ptr_mut(0).ok_or(-1)?;
        // SAFETY: this CPU's scratch, used by the one reader (`Control::reader`).
        let bytes = unsafe { &mut *scratch };
        read_bytes(bytes, layout!(fl_span), base)?;
        Ok(FileLock { base, bytes })
    }

    #[inline(always)]
    fn u64_at(&self, offset: u32) -> u64 {
        let at = (offset as usize).min(FL_SPAN_MAX - 8);
        // SAFETY: at + 8 is within the array.
        unsafe { core::ptr::read_unaligned(self.bytes.as_ptr().add(at).cast()) }
    }

    #[inline(always)]
    pub fn base(&self) -> u64 {
        self.base
    }

    /// The owner of the lock: `fl_owner`.
    #[inline(always)]
    pub fn lmops(&self) -> u64 {
        self.u64_at(layout!(fl_lmops))
    }

    /// The owner of a lease, which is a struct of its own since 6.9.
    #[inline(always)]
    pub fn lease_lmops(&self) -> u64 {
        self.u64_at(layout!(states.lease_lmops))
    }

    /// Whether lockd took this lock for a client.
    #[inline(always)]
    pub fn is_lockds(&self) -> bool {
        self.lmops() == layout!(nlmsvc_lock_operations)
    }

    /// The `nlm_lockowner` of one of lockd's locks.
    #[inline(always)]
    pub fn owner(&self) -> u64 {
        self.u64_at(layout!(fl_owner))
    }

    /// The `struct file`.
    #[inline(always)]
    pub fn file(&self) -> u64 {
        self.u64_at(layout!(fl_file))
    }

    #[inline(always)]
    pub fn start(&self) -> u64 {
        self.u64_at(layout!(fl_start))
    }

    #[inline(always)]
    pub fn end(&self) -> u64 {
        self.u64_at(layout!(fl_end))
    }

    /// `F_RDLCK` 0, `F_WRLCK` 1. A byte up to 6.8, four from 6.9; the values
    /// fit the first byte on the little-endian machines that we build for.
    #[inline(always)]
    pub fn mode(&self) -> u32 {
        let at = (layout!(fl_type) as usize).min(FL_SPAN_MAX - 1);
        // SAFETY: `at` is within the array.
        unsafe { *self.bytes.as_ptr().add(at) as u32 }
    }

    /// The next entry of the inode's list: `fl_list.next`.
    #[inline(always)]
    pub fn next(&self) -> u64 {
        self.u64_at(layout!(fl_list))
    }

    /// The next entry of the CPU's list: `fl_link.next`.
    #[inline(always)]
    pub fn next_of_all(&self) -> u64 {
        self.u64_at(layout!(fl_link))
    }

    /// Head of the list of requests that wait behind it, as `next_waiting` has them.
    #[inline(always)]
    pub fn waiting_head(&self) -> u64 {
        self.base + layout!(states.blocked_requests) as u64
    }

    /// The first of them, or the head.
    #[inline(always)]
    pub fn first_waiting(&self) -> u64 {
        self.u64_at(layout!(states.blocked_requests))
    }

    /// `fl_list.prev`.
    #[inline(always)]
    pub fn prev(&self) -> u64 {
        self.u64_at(layout!(fl_list) + 8)
    }
}
