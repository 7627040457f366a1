//! Whom to notify that a VIP has moved, and how: the client book, kept in a
//! state directory across nodes and crashes, statd's callout, and SM_NOTIFY.

pub mod book;
pub mod books;
pub mod callout;
pub mod config;
pub mod machine;
pub mod names;
pub mod nfs_conf;
pub mod number;
pub mod report;
pub mod sm;
pub mod socket;
pub mod state_dir;
pub mod tell;
