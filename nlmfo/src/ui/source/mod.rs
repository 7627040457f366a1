//! Where ticks come from: the kernel, or a recording.

pub mod live;
pub mod recording;
pub mod replay;
