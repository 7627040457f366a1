//! Whole screens.

mod keys;
mod screens;
