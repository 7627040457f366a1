//! What both sides of the kernel boundary share: the same types in the programs
//! that the kernel runs and in the tool that reads their maps.
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod layout;
pub mod record;

pub use addr::Addr;
