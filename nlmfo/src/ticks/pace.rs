//! The intervals of updates, so that watching stays cheap, and its cost.
//! A tick has a light part (counters, windows, the screen) and a snapshot, whose cost grows with
//! the number of locks. Each has its own interval: rates stay fresh when snapshots become rare.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// The share of a core that watching may use, below 5 % to leave room for variation.
const BUDGET: f64 = 0.045;

/// The part of it that the light part may take.
const LIGHT: f64 = 0.015;

/// The longest interval.
const LONGEST: Duration = Duration::from_mins(10);

/// The interval of ticks at which the light part, which costs `cost`, keeps its share of a core;
/// never shorter than requested.
pub fn next_tick(cost: Duration, asked: Duration) -> Duration {
    next_interval(cost, asked, LIGHT)
}

/// The interval of snapshots: they may use what the ticks leave of the budget.
pub fn next_look(cost: Duration, tick_cost: Duration, tick: Duration) -> Duration {
    let light = tick_cost.div_duration_f64(tick).min(LIGHT);
    next_interval(cost, tick, BUDGET - light)
}

fn next_interval(cost: Duration, asked: Duration, share: f64) -> Duration {
    asked.max(cost.div_f64(share).min(LONGEST))
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

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_is_cheap_comes_as_often_as_asked_for() {
        assert_eq!(next_tick(Duration::ZERO, SECOND), SECOND);
        assert_eq!(next_tick(ms(14), SECOND), SECOND);
        assert_eq!(next_look(ms(30), ms(14), SECOND), SECOND);
    }

    #[test]
    fn both_together_stay_below_5_percent_whatever_they_cost() {
        for tick_cost in [0, 5, 30, 400] {
            for look_cost in [1, 40, 1_130] {
                let (tick_cost, look_cost) = (ms(tick_cost), ms(look_cost));
                let tick = next_tick(tick_cost, SECOND);
                let look = next_look(look_cost, tick_cost, tick);
                assert!(tick >= SECOND && look >= tick);
                let share = tick_cost.div_duration_f64(tick) + look_cost.div_duration_f64(look);
                assert!(share < 0.0501, "{tick_cost:?}, {look_cost:?}: {share}");
            }
        }
    }

    #[test]
    fn a_longer_interval_is_kept() {
        let asked = 60 * SECOND;
        assert_eq!(next_tick(ms(100), asked), asked);
        assert_eq!(next_look(SECOND, ms(100), asked), asked);
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
