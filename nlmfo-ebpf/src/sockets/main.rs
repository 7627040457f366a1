//! The ports on which lockd listens, from lockd's own list of sockets. rpcbind may have
//! forgotten them, or name ports that others registered. An object of its own: it is small, and
//! every caller of lockd needs it.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]

#[cfg(target_arch = "bpf")]
mod walk;

nlmfo_ebpf::object!();
