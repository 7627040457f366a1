//! Where the running kernel keeps its fields: set by the loader before the
//! programs are verified, so that the verifier sees constants and drops the
//! branches that this kernel does not need.

use nlmfo_common::layout::Layout;

// SAFETY: integers only, for which zero is a value.
#[unsafe(no_mangle)]
pub static LAYOUT: Layout = unsafe { core::mem::zeroed() };

/// One field of the running kernel's [`Layout`]. The read is volatile because
/// the compiler would otherwise fold in the value that the loader replaces.
macro_rules! layout {
    ($field:ident) => {
        // SAFETY: a `static` is a valid, initialised, aligned source.
        unsafe { core::ptr::read_volatile(&raw const $crate::layout::LAYOUT.$field) }
    };
}
pub(crate) use layout;
