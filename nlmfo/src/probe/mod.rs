//! The regression probe: what a kernel's NLM server does, seen on a server and raw
//! clients of its own (see [`bed`](crate::bed)), check by check.
//!
//! A check asserts what the kernel *should* do. What it is known to do wrong stands in
//! [`known`], with kernel ranges and evidence, and names a failure; it never excuses one.

pub mod baseline;
mod before;
mod checks;
pub mod known;
mod log;
pub mod report;
pub mod run;
mod stage;
pub mod version;

pub use checks::{Check, all};
