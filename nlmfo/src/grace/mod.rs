//! Grace for one VIP, on kernels that have none: windows in the gate's maps, the gate on every
//! network device, and the audit of lockd's answers.
//!
//! A window is kernel state, not state of a process: maps, programs and links are pinned, and the
//! deadline is on the kernel's clock. If the process that opened one is killed, the window holds and
//! ends, and the next run takes over or cleans up.

pub(crate) mod audit;
pub(crate) mod devices;
pub(crate) mod error;
pub(crate) mod fence;
pub mod gate;
mod guard;
pub(crate) mod keeper;
pub mod leftovers;
pub(crate) mod lock;
pub(crate) mod maps;
pub mod method;
pub(crate) mod mute;
pub(crate) mod pins;
mod reload;
pub(crate) mod report;
pub(crate) mod scope;
pub(crate) mod standing;
pub(crate) mod tc;
pub mod window;

pub(crate) use error::GraceError;
pub use gate::Gate;
