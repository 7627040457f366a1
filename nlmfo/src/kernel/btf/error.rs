//! Why the kernel's type information cannot be used.

use std::io;
use std::path::PathBuf;

/// Why the kernel's type information cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error(
        "cannot read the kernel's type information {path} (it needs a kernel built with \
         CONFIG_DEBUG_INFO_BTF=y, and sysfs mounted on /sys)"
    )]
    Read { path: PathBuf, source: io::Error },
    #[error("the type information {origin} is malformed: {problem}")]
    Malformed {
        origin: String,
        problem: &'static str,
    },
}
