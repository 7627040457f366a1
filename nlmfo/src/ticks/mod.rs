//! This node over time, tick by tick: what `watch` shows and `serve` measures.
//!
//! [`live`] makes ticks of the kernel's counters, lists and grace windows, at a bounded share of
//! a processor. [`tick`] is one of them, [`events`] says what happened between two, and [`world`]
//! adds them up.

pub(crate) mod detail;
pub(crate) mod events;
pub mod judge;
mod known;
pub(crate) mod latency;
pub(crate) mod live;
mod locks;
pub(crate) mod pace;
mod probes;
pub(crate) mod states;
pub mod tick;
pub(crate) mod world;

#[cfg(test)]
pub(crate) mod samples;
#[cfg(test)]
pub(crate) mod tables;
