//! What both sides of the kernel boundary share: the same types in the programs
//! that the kernel runs and in the tool that reads their maps.
#![cfg_attr(not(any(test, feature = "serde")), no_std)]
#![warn(missing_docs)]

/// Plain records: each has the given size, so that it has no padding, and user space may put it
/// into the maps.
macro_rules! plain {
    ($($type:ty: $size:expr),+ $(,)?) => {$(
        const _: () = assert!(size_of::<$type>() == $size);
        // SAFETY: `repr(C)`, integers and arrays of integers only, no padding (the size is
        // asserted above).
        #[cfg(feature = "user")]
        unsafe impl aya::Pod for $type {}
    )+};
}
pub(crate) use plain;

pub mod addr;
pub mod counters;
pub mod gate;
pub mod layout;
pub mod nlm_call;
#[cfg(feature = "serde")]
pub mod probe;
pub mod protocol;
pub mod record;
pub mod sockets;
pub mod state;
pub mod stream;
pub mod unlock;
#[cfg(feature = "serde")]
pub mod version;

pub use addr::Addr;
