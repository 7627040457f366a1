//! Whole screens, and what they are made of.

mod keys;
mod screens;
pub mod tables;
pub mod ticks;
