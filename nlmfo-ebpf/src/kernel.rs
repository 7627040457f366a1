//! The kernel's structs, read through the offsets that the loader took from
//! BTF: one accessor per thing that the programs want to know. Every read is a
//! `bpf_probe_read_kernel`, so a stale pointer gives an error or stale bytes,
//! never a fault.

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use nlmfo_common::Addr;
use nlmfo_common::layout::{FL_SPAN_MAX, Layout};

use crate::maps::FILE_LOCK;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// No error of the kernel: an address of neither IPv4 nor IPv6.
pub const UNKNOWN_FAMILY: i32 = 1;

/// Filled in by the loader before the programs are verified, read-only after.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = Layout::UNSET;

/// One field of [`LAYOUT`]. Volatile, as the compiler may not fold the zeros
/// that stand there at build time; the verifier sees the loader's constants.
macro_rules! layout {
    ($field:ident) => {{
        let layout = &raw const $crate::kernel::LAYOUT;
        // SAFETY: a read-only global of ours, aligned, always valid.
        unsafe { core::ptr::read_volatile(&raw const (*layout).$field) }
    }};
}
pub(crate) use layout;

/// Reads a `T` at `base + offset` in kernel memory.
#[inline(always)]
pub fn read<T>(base: u64, offset: u32) -> Result<T, i32> {
    // SAFETY: the helper checks the address; `T` is plain integers or arrays of them.
    unsafe { bpf_probe_read_kernel((base + offset as u64) as *const T) }
}

/// Reads a pointer field.
#[inline(always)]
pub fn pointer(base: u64, offset: u32) -> Result<u64, i32> {
    read::<u64>(base, offset)
}

/// Fills the first `len` bytes of `into` from kernel memory, at most all of it.
#[inline(always)]
pub fn read_bytes<const N: usize>(into: *mut [u8; N], len: u32, from: u64) -> Result<(), i32> {
    // SAFETY: the destination has N bytes, and the length is cut to that.
    let code = unsafe {
        generated::bpf_probe_read_kernel(into.cast(), len.min(N as u32), from as *const _)
    };
    if code == 0 { Ok(()) } else { Err(code as i32) }
}

/// A NUL-terminated string, cut at the length of `into`.
#[inline(always)]
pub fn read_str<const N: usize>(into: *mut [u8; N], from: u64) {
    // SAFETY: the destination has N bytes.
    unsafe { *into.cast::<u8>() = 0 };
    if from != 0 {
        // SAFETY: the destination has N bytes; a failure leaves an empty string.
        unsafe {
            generated::bpf_probe_read_kernel_str(into.cast(), N as u32, from as *const _);
        }
    }
}

/// What `sockaddr_in` and `sockaddr_in6` begin with (include/uapi/linux/in.h and
/// in6.h): programs are compiled against it, so it cannot differ.
#[repr(C)]
struct Sockaddr {
    family: u16,
    port: u16,
    /// `sin_addr`, or `sin6_flowinfo`.
    v4: [u8; 4],
    /// `sin6_addr`.
    v6: [u8; 16],
}

/// A `sockaddr_storage` that holds an IPv4 or IPv6 address. One read for either
/// family: a call of the helper costs more than the bytes.
#[inline(always)]
pub fn sockaddr(at: u64) -> Result<Addr, i32> {
    let address = read::<Sockaddr>(at, 0)?;
    match address.family {
        AF_INET => Ok(Addr::from_v4(address.v4)),
        AF_INET6 => Ok(Addr(address.v6)),
        _ => Err(UNKNOWN_FAMILY),
    }
}

/// The server address that a `nlm_host`'s client uses.
#[inline(always)]
pub fn host_vip(host: u64) -> Result<Addr, i32> {
    sockaddr(host + layout!(host_srcaddr) as u64)
}

/// The bytes of a `file_lock` that hold the fields we read: one copy instead of
/// a helper call per field. They live in a per-CPU map, as the stack is small;
/// only the snapshot's one reader copies locks.
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

    /// Whether lockd took this lock for a client.
    #[inline(always)]
    pub fn is_lockds(&self) -> bool {
        self.u64_at(layout!(fl_lmops)) == layout!(nlmsvc_lock_operations)
    }

    /// The `nlm_lockowner`.
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

    /// `fl_list.prev`.
    #[inline(always)]
    pub fn prev(&self) -> u64 {
        self.u64_at(layout!(fl_list) + 8)
    }
}
