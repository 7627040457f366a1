//! Waiting for a condition, never for a length of time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Long enough for the slowest step under emulation on a busy machine, short enough that a hung
/// scenario reports it before the host gives up on the virtual machine.
pub const DEADLINE: Duration = Duration::from_mins(4);

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The result of checking a condition.
pub enum Seen<T> {
    /// The condition holds, with its value.
    Yes(T),
    /// Not yet; the text goes into the error if the time runs out.
    No(String),
}

/// Checks `condition` until it holds, for at most [`DEADLINE`].
///
/// # Errors
/// The condition's own error at once, or, when the time is up, `what` and the text that was seen last.
pub fn until<T>(what: &str, condition: impl FnMut() -> Result<Seen<T>>) -> Result<T> {
    until_for(DEADLINE, what, condition)
}

/// [`until`] with a time limit of its own.
///
/// # Errors
/// As [`until`].
pub fn until_for<T>(
    limit: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<Seen<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    loop {
        match condition()? {
            Seen::Yes(value) => return Ok(value),
            Seen::No(seen) if Instant::now() >= deadline => {
                bail!("waited {limit:?} for {what}; seen last: {seen}")
            }
            Seen::No(_) => thread::sleep(POLL_INTERVAL),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_is_looked_at_until_it_holds() {
        let mut looks = 0;
        let value = until_for(Duration::from_secs(5), "the third look", || {
            looks += 1;
            Ok(if looks == 3 {
                Seen::Yes(looks)
            } else {
                Seen::No(looks.to_string())
            })
        });
        assert_eq!(value.unwrap(), 3);
    }

    #[test]
    fn the_error_tells_what_was_seen_last() {
        let error = until_for(Duration::ZERO, "two locks", || {
            Ok(Seen::<()>::No("one lock".into()))
        })
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "waited 0ns for two locks; seen last: one lock"
        );
    }
}
