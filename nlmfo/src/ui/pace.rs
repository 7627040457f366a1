//! How often is looked, so that watching stays cheap, and what it costs.
//!
//! A tick has a light part (counters, windows, the screen) and a look at every lock,
//! whose cost grows with their number. Each has half of the budget, and an interval of
//! its own: rates stay fresh where looks have become rare.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The part of a core that one of the two may take. Both together stay below 5 %, with
/// room for what a single interval does not foresee.
const SHARE: f64 = 0.0225;

/// How long to wait from the beginning of one piece of work to the next, so that it
/// takes no more than its share of a core; never shorter than was asked for.
pub fn next_interval(cost: Duration, asked: Duration) -> Duration {
    // Ten minutes without a look would be no watch: more than that nothing costs.
    let least = cost.div_f64(SHARE).min(Duration::from_secs(600));
    asked.max(least)
}

/// The processor time of this process so far, all its threads, user and kernel.
pub fn process_time() -> Duration {
    time(ClockId::ProcessCPUTime)
}

/// The processor time of this thread so far.
pub fn thread_time() -> Duration {
    time(ClockId::ThreadCPUTime)
}

fn time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_cheap_comes_as_often_as_asked_for() {
        assert_eq!(next_interval(Duration::ZERO, SECOND), SECOND);
        assert_eq!(next_interval(Duration::from_millis(22), SECOND), SECOND);
    }

    #[test]
    fn what_is_dear_comes_so_rarely_that_it_keeps_its_share() {
        for cost in [30, 200, 1_130] {
            let cost = Duration::from_millis(cost);
            let interval = next_interval(cost, SECOND);
            let share = cost.as_secs_f64() / interval.as_secs_f64();
            assert!(interval > SECOND && share < 0.025, "{cost:?}: {interval:?}");
        }
    }

    #[test]
    fn a_longer_interval_is_kept() {
        let asked = 60 * SECOND;
        assert_eq!(next_interval(SECOND, asked), asked);
    }

    #[test]
    fn processor_time_goes_on() {
        let (process, thread) = (process_time(), thread_time());
        let mut sum = 0u64;
        while thread_time() == thread {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(process_time() > process);
    }
}
