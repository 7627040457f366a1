//! Who is to be told that a VIP has moved: the client book, kept in a state directory
//! across nodes and crashes, and statd's callout.

pub mod book;
pub mod durable;
pub mod state_dir;
