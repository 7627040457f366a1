//! The library of `cargo xtask`, so that the scenarios in `tests` boot the same lab as
//! `cargo xtask lab`.
#![allow(
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    reason = "the crate is a program; nobody calls its functions from outside"
)]

pub mod apt;
pub mod arch;
pub mod bench;
pub mod build;
pub mod cache;
pub mod contracts;
mod crates;
pub mod demo;
#[cfg(test)]
mod dependencies;
#[cfg(test)]
mod house;
pub mod lab;
pub mod package;
pub mod picture;
pub mod probe;
pub mod progress;
mod scripts;
pub mod test;
pub mod toolchain;
mod zig;
