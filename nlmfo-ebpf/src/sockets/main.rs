//! The ports that lockd listens on, from lockd's own list of sockets: what others
//! registered with rpcbind, or what rpcbind forgot, has no part in it. An object of its
//! own, as it is small and whoever calls lockd needs it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod walk;

nlmfo_ebpf::object!();
