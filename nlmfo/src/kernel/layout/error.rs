//! Why the layout of the kernel's data is not known.

use std::io;

use super::{BUCKET_BYTES, FILE_HASH_BUCKETS, FILES};
use crate::kernel::btf::{BtfError, FieldError};
use crate::kernel::symbols::SymbolsError;

/// Why the layout of the kernel's data is not known.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    #[error(transparent)]
    Btf(#[from] BtfError),
    #[error(transparent)]
    Symbols(#[from] SymbolsError),
    #[error(
        "kernel {release} lacks what is needed for {purpose}; its structs are new to nlmfo: \
         please report the release and this line"
    )]
    Field {
        release: String,
        purpose: &'static str,
        source: FieldError,
    },
    #[error(
        "kernel {release}: `{path}` has {found} bytes where {expected} were expected; it is needed \
         for {purpose}. This kernel's structs are new to nlmfo: please report the release and this line"
    )]
    Size {
        release: String,
        path: &'static str,
        purpose: &'static str,
        found: u32,
        expected: u32,
    },
    #[error(
        "kernel {release}: lockd's hash table {FILES} has room for {room} bytes up to the next \
         symbol, where {} were expected; waiters and shares cannot be read from it",
        u64::from(FILE_HASH_BUCKETS) * BUCKET_BYTES
    )]
    FileHash { release: String, room: u64 },
    #[error(
        "kernel {release} has no type information of its module {module} ({folder}/{module} is not \
         there): boot a kernel built with CONFIG_DEBUG_INFO_BTF_MODULES=y"
    )]
    NoModuleBtf {
        release: String,
        module: &'static str,
        folder: &'static str,
    },
    #[error("cannot tell the kernel's release: {0}")]
    Release(io::Error),
}
