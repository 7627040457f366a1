//! What the lab scenarios share: the guest side, which builds NFS topologies
//! and holds locks inside the virtual machine, and the scenarios themselves.
//!
//! The program `lab-guest` is this library's face in the virtual machine; the
//! host side (`tests/lab.rs`) boots kernels and reads the verdicts.

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
