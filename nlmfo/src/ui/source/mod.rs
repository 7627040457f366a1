//! Where ticks come from: the kernel, or a recording.

pub(crate) mod error;
pub(crate) mod live;
pub mod recording;
pub(crate) mod replay;
