//! The maps that the programs share with the tool.

use aya_ebpf::{macros::map, maps::Array};

/// One counter: calls of `locks_show` since the programs were attached.
#[map]
pub static LOCKS_SHOWN: Array<u64> = Array::with_max_entries(1, 0);
