//! The lab scenarios, and the guest side that builds NFS topologies and holds locks inside the
//! virtual machine.
//! The program `lab-guest` runs them in the virtual machine; the host side (`tests/lab`) boots
//! kernels and reads the verdicts.
#![allow(
    clippy::missing_errors_doc,
    clippy::missing_panics_doc,
    reason = "the crate is a test; nobody calls its functions from outside"
)]

pub mod bench;
pub mod cluster;
pub mod demo;
pub mod emulation;
pub mod guest;
pub mod picture;
pub mod queue;
pub mod scenarios;
pub mod several;
pub mod times;
pub mod verdict;
