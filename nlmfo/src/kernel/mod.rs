//! The running kernel: its type layouts, symbols, procfs and netlink files, and
//! what it supports. Only this room knows a path under `/proc` or `/sys`.

pub(crate) mod admission;
pub(crate) mod bpffs;
pub mod btf;
pub(crate) mod cgroup;
pub(crate) mod connections;
pub(crate) mod exports;
pub(crate) mod gate_layout;
pub(crate) mod grace;
pub(crate) mod handle;
pub mod layout;
pub(crate) mod leases;
pub(crate) mod lockd;
pub(crate) mod locks;
pub(crate) mod modules;
pub(crate) mod mounts;
pub(crate) mod namespaces;
pub(crate) mod neighbours;
pub(crate) mod netlink;
pub mod netns;
pub(crate) mod nfs4_clients;
pub(crate) mod nfsd;
pub(crate) mod nfsdcld;
pub(crate) mod path;
pub(crate) mod preflight;
pub(crate) mod processes;
pub(crate) mod sockets_layout;
pub(crate) mod state_layout;
pub mod symbols;
pub(crate) mod unlock_bug;
pub(crate) mod unlock_layout;

use std::io;

use nlmfo_common::version::Version;

/// The running kernel's release, as `uname -r` prints it.
///
/// # Errors
/// If procfs is not mounted on `/proc`.
pub fn release() -> io::Result<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    Ok(release.trim_end().to_owned())
}

/// The version of the running kernel; none if neither its release nor its version string has one.
pub(crate) fn version() -> Option<Version> {
    let built = std::fs::read_to_string("/proc/sys/kernel/version").unwrap_or_default();
    Version::of_kernel(&release().unwrap_or_default(), &built)
}

/// The ID of this boot of the kernel, as text.
pub(crate) fn boot() -> io::Result<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(id.trim_end().to_owned())
}

/// How many CPUs there may be, if they are numbered from 0 without a gap.
fn possible_cpus() -> Option<u32> {
    let list = std::fs::read_to_string("/sys/devices/system/cpu/possible").ok()?;
    cpus_in(list.trim_end())
}

/// The number in a list as the kernel writes it: `0` or `0-7`.
fn cpus_in(list: &str) -> Option<u32> {
    let last = match list.strip_prefix('0')? {
        "" => 0,
        rest => rest.strip_prefix('-')?.parse::<u32>().ok()?,
    };
    last.checked_add(1)
}

#[cfg(test)]
mod tests {
    use super::cpus_in;

    #[test]
    fn cpus_are_counted_where_none_is_left_out() {
        assert_eq!(cpus_in("0"), Some(1));
        assert_eq!(cpus_in("0-127"), Some(128));
        assert_eq!(cpus_in("0-3,8-11"), None);
        assert_eq!(cpus_in("1-3"), None);
    }
}
