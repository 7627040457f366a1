//! What the two objects of the kernel side have in common: `nlmfo-ebpf`, which
//! observes lockd while nlmfo runs, and `nlmfo-gate`, which stays in the kernel for
//! as long as a grace window is open.
#![no_std]

#[cfg(target_arch = "bpf")]
pub mod memory;
