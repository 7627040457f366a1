//! The regression probe: what a kernel's NLM server does, seen on a server and raw
//! clients of its own (see [`testbed`](crate::testbed)), check by check.
//! It names the files under `/proc` that it checks.
//!
//! A check asserts what the kernel *should* do. [`known`] lists what kernels are known to do wrong,
//! with kernel ranges and evidence. A known bug names a failure, and never excuses it.

pub mod baseline;
mod before;
mod checks;
pub mod contract;
mod fixture;
mod held;
pub(crate) mod known;
mod log;
pub(crate) mod report;
pub(crate) mod run;
mod worker;

pub(crate) use checks::{Check, all};

/// The server addresses of the testbed, which `unlock_ip` is given in all network
/// namespaces.
pub(crate) fn addresses() -> impl Iterator<Item = std::net::IpAddr> {
    (fixture::Family::BOTH.into_iter()).flat_map(fixture::Family::vips)
}
