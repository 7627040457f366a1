//! `nlmfo watch`: what a [`Tick`] says, made live or read from a recording, and
//! shown on a terminal.
//!
//! [`source`] makes ticks, [`state`] takes them and keys, [`draw`] turns the state
//! into cells: the screen never knows whether a tick is live.
//!
//! [`Tick`]: tick::Tick

pub mod detail;
pub mod draw;
pub mod events;
pub mod judge;
pub mod keys;
pub mod latency;
pub mod pace;
pub mod run;
pub mod source;
pub mod state;
pub mod terminal;
pub mod tick;
pub mod world;

#[cfg(test)]
mod tests;
