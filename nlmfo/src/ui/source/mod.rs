//! Where ticks come from: the kernel, or a recording.

pub mod known;
pub mod live;
pub mod locks;
pub mod probes;
pub mod recording;
pub mod replay;
