//! The programs that observe lockd and nfsd: one file per family of hooks. Built for
//! `bpfel-unknown-none` by `nlmfo/build.rs`; on the host it is an empty program,
//! so that the workspace's checks work.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod host;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod lock_list;
#[cfg(target_arch = "bpf")]
mod lock_path;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod monitor;
#[cfg(target_arch = "bpf")]
mod nfs4_path;
#[cfg(target_arch = "bpf")]
mod release_path;
#[cfg(target_arch = "bpf")]
mod snapshot;
#[cfg(target_arch = "bpf")]
mod states;
#[cfg(target_arch = "bpf")]
mod unlock_path;

nlmfo_ebpf::object!();
