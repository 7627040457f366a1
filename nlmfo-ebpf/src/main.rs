//! The kernel side of nlmfo. Built for `bpfel-unknown-none` by `nlmfo/build.rs`;
//! on the host it is an empty program, so that `cargo check --workspace` works.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod layout;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod snapshot;

/// The kernel lends its GPL-only helpers (`bpf_probe_read_kernel`, …) to programs
/// that say so; this is the spelling that it compares with.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

// The programs cannot panic: bounds are checked where the verifier wants them,
// and no code path is left that could come here.
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
