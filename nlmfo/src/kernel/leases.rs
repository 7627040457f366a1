//! Whether the kernel gives leases, `fs.leases-enable`: of the whole node. nfsd's delegations are
//! leases.

use std::{fs, io};

const ENABLE: &str = "/proc/sys/fs/leases-enable";

pub fn are_enabled() -> io::Result<bool> {
    Ok(fs::read_to_string(ENABLE)?.trim() != "0")
}

/// Leases that are held stay.
pub fn enable(enable: bool) -> io::Result<()> {
    fs::write(ENABLE, if enable { "1" } else { "0" })
}
