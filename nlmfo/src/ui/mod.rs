//! `nlmfo watch`: what a [`Tick`] says, made live or read from a recording, and
//! shown on a terminal.
//!
//! [`source`] makes ticks, [`state`] takes them and keys, [`draw`] turns the state
//! into cells: the screen never knows whether a tick is live.
//!
//! [`Tick`]: tick::Tick

pub(crate) mod detail;
pub mod draw;
pub(crate) mod events;
pub mod judge;
pub(crate) mod keys;
pub(crate) mod latency;
pub(crate) mod pace;
pub mod run;
pub mod source;
pub mod state;
pub(crate) mod terminal;
pub mod tick;
pub(crate) mod world;

#[cfg(test)]
mod tests;
