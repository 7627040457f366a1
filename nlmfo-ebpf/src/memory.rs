//! Reads of kernel memory. Every read is a `bpf_probe_read_kernel`: a stale pointer gives an
//! error or stale bytes, never a fault.

use aya_ebpf::helpers::{bpf_probe_read_kernel, generated};
use nlmfo_common::Addr;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// No error of the kernel: an address of neither IPv4 nor IPv6.
pub const UNKNOWN_FAMILY: i32 = 1;

/// Reads a `T` at `base + offset` in kernel memory.
///
/// # Errors
/// The kernel's error number, negative, if there is no such memory.
#[inline(always)]
pub fn read<T>(base: u64, offset: u32) -> Result<T, i32> {
    // SAFETY: the helper checks the address; `T` is plain integers or arrays of them.
    unsafe { bpf_probe_read_kernel((base + offset as u64) as *const T) }
}

/// Reads a pointer field.
///
/// # Errors
/// The kernel's error number, negative, if there is no such memory.
#[inline(always)]
pub fn pointer(base: u64, offset: u32) -> Result<u64, i32> {
    read::<u64>(base, offset)
}

/// Fills the first `len` bytes of `into` from kernel memory; at most its length.
///
/// # Errors
/// The kernel's error number, negative, if there is no such memory.
#[inline(always)]
pub fn read_bytes<const N: usize>(into: *mut [u8; N], len: u32, from: u64) -> Result<(), i32> {
    // SAFETY: the destination has N bytes, and the length is cut to that.
    let code = unsafe {
        generated::bpf_probe_read_kernel(into.cast(), len.min(N as u32), from as *const _)
    };
    if code == 0 { Ok(()) } else { Err(code as i32) }
}

/// Reads a NUL-terminated string, cut at the length of `into`. Returns the number of bytes
/// read, including the NUL; 0 or less after a failure, which leaves an empty string.
#[inline(always)]
pub fn read_str<const N: usize>(into: *mut [u8; N], from: u64) -> i64 {
    // SAFETY: the destination has N bytes.
    unsafe { *into.cast::<u8>() = 0 };
    if from == 0 {
        return 0;
    }
    // SAFETY: the destination has N bytes.
    unsafe { generated::bpf_probe_read_kernel_str(into.cast(), N as u32, from as *const _) as i64 }
}

/// Reads a string. A string longer than N bytes is cut and has no NUL.
#[inline(always)]
pub fn read_name<const N: usize>(into: *mut [u8; N], from: u64) {
    if read_str(into, from) == N as i64
        && let Ok(last) = read::<u8>(from, N as u32 - 1)
    {
        // SAFETY: the last of the destination's N bytes.
        unsafe { *into.cast::<u8>().add(N - 1) = last };
    }
}

/// What `sockaddr_in` and `sockaddr_in6` begin with (include/uapi/linux/in.h and
/// in6.h): programs are compiled against it, so it cannot differ.
#[repr(C)]
struct Sockaddr {
    family: u16,
    /// Network byte order.
    port: u16,
    /// `sin_addr`, or `sin6_flowinfo`.
    v4: [u8; 4],
    /// `sin6_addr`.
    v6: [u8; 16],
}

/// The address and port (host byte order) of a `sockaddr_storage` that holds an IPv4 or
/// IPv6 address. One read serves both families: a helper call costs more than the extra bytes.
///
/// # Errors
/// The kernel's error number, negative, if there is no such memory; [`UNKNOWN_FAMILY`] if it holds
/// neither.
#[inline(always)]
pub fn sockaddr(at: u64) -> Result<(Addr, u16), i32> {
    let address = read::<Sockaddr>(at, 0)?;
    let ip = match address.family {
        AF_INET => Addr::from_v4(address.v4),
        AF_INET6 => Addr(address.v6),
        _ => return Err(UNKNOWN_FAMILY),
    };
    Ok((ip, u16::from_be(address.port)))
}
