//! A client's connection to lockd with the gate in between, without a kernel.
//!
//! ```text
//! wire ──> path ──> gate ──> path ──> server ──> lockd
//! writes   cuts,    the code  loses   TCP puts   decodes,
//! calls    repeats  on trial          together   by itself
//! ```
//!
//! Nothing here knows of proptest, so that the fuzz target can use it too.

pub mod attack;
pub mod gate;
pub mod lockd;
pub mod path;
pub mod seeds;
pub mod wire;
