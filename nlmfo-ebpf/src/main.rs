//! The kernel side of nlmfo. Built for `bpfel-unknown-none` by `nlmfo/build.rs`;
//! on the host it is an empty program, so that `cargo check --workspace` works.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(not(target_arch = "bpf"))]
fn main() {}
