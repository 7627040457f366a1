//! What both sides of the kernel boundary share: the same types in the programs
//! that the kernel runs and in the tool that reads their maps.
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod gate;
pub mod layout;
pub mod nlm_call;
pub mod protocol;
pub mod record;
pub mod sockets;
pub mod state;
pub mod stream;

pub use addr::Addr;
