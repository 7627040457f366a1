//! What the eBPF objects share: `nlmfo-ebpf`, which observes lockd while nlmfo runs, `nlmfo-gate`,
//! which stays in the kernel as long as a grace window is open, and `nlmfo-sockets`, which reads
//! lockd's ports.
//!
//! # Contracts
//!
//! A comment above each program states what it relies on. It is machine-readable
//! (`nlmfo/src/probe/contract`), and `cargo xtask contracts` compares it with kernels:
//!
//! ```text
//! // kernel: int f(struct old *x)
//! // seen: 6.1 6.12
//! // kernel: int f(struct new *x)
//! // seen: 7.2 7.3
//! // context: lockd's thread, no lock held
//! //
//! // Other remarks.
//! #[kprobe]
//! ```
//!
//! | entry | says |
//! |---|---|
//! | `kernel` | the function's prototype, on one line, as BTF has it: names are compared as well as types, integers are called as the compiler calls them (`short unsigned int`). A program on return may write `(...)` for the parameters |
//! | `hook` | instead of `kernel`, free text: where a program is attached that is on no kernel function |
//! | `seen` | the kernel series on which that was compared (`kernel`) or run (`hook`), ascending; a prototype holds from its first one up to the next prototype's |
//! | `context` | the thread that runs it, and the locks it holds |
//!
//! Every entry but `kernel` may span several lines; an empty comment line ends the list. A
//! program without these entries fails the tests, and so does one that nlmfo attaches to
//! another function.
#![no_std]
#![warn(missing_docs)]

#[cfg(target_arch = "bpf")]
pub mod arguments;
#[cfg(target_arch = "bpf")]
pub mod memory;

/// A field of a layout: a global that the loader sets before the programs are verified. The read is
/// volatile, so that the compiler does not fold the zeros of build time; the verifier sees the loader's
/// constants.
#[macro_export]
macro_rules! field {
    ($layout:path, $($field:ident).+) => {{
        let layout = &raw const $layout;
        // SAFETY: a read-only global of ours, aligned, always valid.
        unsafe { core::ptr::read_volatile(&raw const (*layout).$($field).+) }
    }};
}

/// What an object needs besides its programs: the licence, without which the kernel refuses the
/// tracing helpers, and a panic handler, which Rust requires and which is never called. On the host it
/// is an empty program.
#[macro_export]
macro_rules! object {
    () => {
        #[cfg(not(target_arch = "bpf"))]
        fn main() {}

        #[cfg(target_arch = "bpf")]
        #[panic_handler]
        fn panic(_info: &core::panic::PanicInfo) -> ! {
            loop {}
        }

        #[cfg(target_arch = "bpf")]
        #[unsafe(link_section = "license")]
        #[unsafe(no_mangle)]
        static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
    };
}
