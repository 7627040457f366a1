//! The running kernel: its type layouts, symbols, procfs and netlink files, and
//! what it supports. Only this room knows a path under `/proc` or `/sys`.

pub mod admission;
pub mod bpffs;
pub mod btf;
pub mod cgroup;
pub mod exports;
pub mod gate_layout;
pub mod handle;
pub mod layout;
pub mod lockd;
pub mod locks;
pub mod modules;
pub mod mounts;
pub mod netlink;
pub mod netns;
pub mod nfs4_clients;
pub mod nfsd;
pub mod path;
pub mod preflight;
pub mod sockets_layout;
pub mod state_layout;
pub mod symbols;
pub mod unlock_bug;

use std::io;

/// The running kernel's release, as `uname -r` prints it.
pub fn release() -> io::Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim_end().to_owned())
}
