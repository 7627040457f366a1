//! `nlmfo watch`: shows a [`Tick`] on a terminal, whether live or from a recording.
//!
//! [`source`] has ticks, [`state`] takes them and keys, [`draw`] turns the state
//! into cells: the screen never knows whether a tick is live.
//!
//! [`Tick`]: crate::ticks::tick::Tick

pub mod draw;
pub(crate) mod keys;
pub mod run;
pub mod source;
pub mod state;
pub(crate) mod terminal;

#[cfg(test)]
mod tests;
