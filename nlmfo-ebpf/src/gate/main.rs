//! The grace gate: per-VIP grace by rewriting the `reclaim` word of incoming NLM calls, the
//! guard at lockd's sockets, and the audit of lockd's answers. It is an object of its own,
//! because it is pinned and outlives the tool.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod audit;
#[cfg(target_arch = "bpf")]
mod calls;
#[cfg(target_arch = "bpf")]
mod classifier;
#[cfg(target_arch = "bpf")]
mod guard;
#[cfg(target_arch = "bpf")]
mod kernel;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod packet;
#[cfg(target_arch = "bpf")]
mod ports;
#[cfg(target_arch = "bpf")]
mod socket;

nlmfo_ebpf::object!();
