//! Grace for one VIP, on kernels that have none: windows in the gate's maps, the gate on every
//! network device, and the audit of lockd's answers.
//!
//! A window is state of the kernel, not of a process: maps, programs and links are
//! pinned, and the deadline is on the kernel's clock. If the process that opened one is killed, the
//! window holds and ends, and the next run takes over or cleans up.

pub mod audit;
pub mod devices;
pub mod error;
pub mod fence;
pub mod gate;
mod guard;
pub mod keeper;
pub mod leftovers;
pub mod lock;
pub mod maps;
pub mod pins;
mod reload;
pub mod report;
pub mod scope;
pub mod standing;
pub mod tc;
pub mod way;
pub mod window;

pub use error::GraceError;
pub use gate::Gate;
