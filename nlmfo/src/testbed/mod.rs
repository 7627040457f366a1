//! A testbed: an NFS server and its raw clients in namespaces of their own, with the
//! node's own nfs-utils. `nlmfo probe` runs on it, and the lab's scenarios. It knows paths
//! under `/proc` and `/sys`: it mounts and writes those of its own namespaces.

pub mod command;
pub mod handles;
pub mod node;
pub mod proc_locks;
pub mod range;
pub mod raw;
pub mod server;
pub mod wait;
