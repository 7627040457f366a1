//! Notifies clients that a VIP has moved: the client book, which is kept in a state directory across
//! nodes and crashes, statd's callout, and SM_NOTIFY.

pub mod book;
pub(crate) mod books;
pub(crate) mod callout;
pub(crate) mod config;
pub(crate) mod machine;
pub(crate) mod names;
pub(crate) mod nfs_conf;
pub(crate) mod number;
pub(crate) mod report;
pub(crate) mod sm;
pub(crate) mod socket;
pub mod state_dir;
pub(crate) mod tell;
