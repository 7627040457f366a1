//! Any bytes as an attack on the gate: none may get a LOCK or SHARE past it.
//!
//! `cargo run --bin seeds`, then `cargo fuzz run -s none calls`, which needs no
//! nightly compiler: there is no unsafe code here for a sanitizer to watch.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code, reason = "the property tests use the rest")]
#[path = "../../nlmfo-common/tests/calls/model/mod.rs"]
mod model;

fuzz_target!(|bytes: &[u8]| model::attack::of_bytes(bytes));
