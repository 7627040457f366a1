//! The running kernel: its type layouts, symbols, procfs and netlink files, and
//! what it supports. Only this room knows a path under `/proc` or `/sys`.

pub(crate) mod admission;
pub(crate) mod bpffs;
pub mod btf;
pub(crate) mod cgroup;
pub(crate) mod exports;
pub(crate) mod gate_layout;
pub(crate) mod handle;
pub mod layout;
pub(crate) mod lockd;
pub(crate) mod locks;
pub(crate) mod modules;
pub(crate) mod mounts;
pub mod netlink;
pub mod netns;
pub(crate) mod nfs4_clients;
pub(crate) mod nfsd;
pub(crate) mod nfsdcld;
pub(crate) mod path;
pub(crate) mod preflight;
pub(crate) mod sockets_layout;
pub(crate) mod state_layout;
pub mod symbols;
pub(crate) mod unlock_bug;

use std::io;

/// The running kernel's release, as `uname -r` prints it.
pub fn release() -> io::Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim_end().to_owned())
}
