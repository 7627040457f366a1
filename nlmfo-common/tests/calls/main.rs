//! Property tests of the call parser and the stream that follows a connection: what
//! the kernel runs, between a model of a client and a model of lockd.
//!
//! `NLMFO_CALL_CASES` is how many cases each property gets.

mod fuzz;
mod honest;
mod hostile;
mod model;
mod regressions;
mod strategies;

use std::env;

use proptest::test_runner::Config;

/// The cases of an ordinary run.
const CASES: u32 = 10_000;

fn config() -> Config {
    one_in(1)
}

/// For cases that take longer: one for so many of the others.
fn one_in(others: u32) -> Config {
    let cases = env::var("NLMFO_CALL_CASES").map_or(CASES, |cases| {
        cases.parse().expect("NLMFO_CALL_CASES is a number")
    });
    Config {
        cases: cases.div_ceil(others),
        failure_persistence: None,
        ..Config::default()
    }
}
