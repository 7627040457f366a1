//! Grace windows: opening, extending, ending them. Deadlines are on the clock of
//! `bpf_ktime_get_ns`, `CLOCK_MONOTONIC`, in nanoseconds.

use std::time::Duration;

use nlmfo_common::gate::{Gate, Window};
use rustix::time::{ClockId, clock_gettime};

use super::audit::WindowState;

/// Nothing is audited until this is set to a moment.
const NOT_YET: u64 = u64::MAX;

/// The audit has ended: lockd was reloaded.
const NEVER_AGAIN: u64 = u64::MAX - 1;

/// The moment by the gate's clock.
pub fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The moment after that long.
pub fn after(now: u64, duration: Duration) -> u64 {
    now.saturating_add(duration.as_nanos().try_into().unwrap_or(u64::MAX))
}

/// How long until then; zero if it has passed.
pub fn left(until: u64, now: u64) -> Duration {
    Duration::from_nanos(until.saturating_sub(now))
}

pub(crate) fn is_open(window: &Window, now: u64) -> bool {
    window.opened != 0 && window.until > now
}

pub(crate) fn state(window: &Window, now: u64) -> WindowState {
    match window.audited_from {
        NOT_YET if is_open(window, now) => WindowState::Opening,
        NOT_YET => WindowState::EndedEarly,
        NEVER_AGAIN => WindowState::Reloaded,
        _ if is_open(window, now) => WindowState::Stood,
        _ => WindowState::Ended,
    }
}

/// A window that opens now, or an open one with a new deadline. Without a fence, one that opens is
/// taken for late ([`in_time`]).
pub fn opened(before: Option<Window>, now: u64, until: u64) -> Window {
    match before {
        Some(open) if is_open(&open, now) => Window { until, ..open },
        // A fence has a deadline of its own.
        other => Window {
            opened: now,
            until,
            fenced_until: other.map_or(0, |window| window.fenced_until),
            muted_until: other.map_or(0, |window| window.muted_until),
            audited_from: NOT_YET,
            late: u64::from(other.is_none_or(|window| window.fenced_until <= now)),
        },
    }
}

/// The window of a VIP that lockd did not serve when it opened.
pub fn in_time(window: Window) -> Window {
    Window { late: 0, ..window }
}

/// The window of a new gate for a window or fence of the old one, which was loaded for an unloaded
/// lockd; `None` if it has nothing to do. Connections from before it are closed: it has not seen them.
pub fn reloaded(before: Window, now: u64) -> Option<Window> {
    if before.fenced_until <= now && !is_open(&before, now) {
        return None;
    }
    Some(match is_open(&before, now) {
        true => Window {
            opened: now,
            audited_from: NEVER_AGAIN,
            ..before
        },
        false => Window {
            fenced_until: before.fenced_until,
            ..Window::default()
        },
    })
}

/// From `now` on, what lockd begins to work on is audited.
pub fn audited(window: Window, now: u64) -> Window {
    match window.audited_from {
        NOT_YET => Window {
            audited_from: now,
            ..window
        },
        _ => window,
    }
}

/// The window with its end now, if it is open.
pub fn ended(window: Window, now: u64) -> Window {
    Window {
        until: window.until.min(now),
        ..window
    }
}

/// The window with a fence before it until then; the fence alone if it was not open.
pub fn fenced(window: Window, until: u64) -> Window {
    Window {
        fenced_until: until,
        ..window
    }
}

/// The same, muted until then.
pub fn muted(window: Window, until: u64) -> Window {
    Window {
        muted_until: until,
        ..window
    }
}

/// When the gate no longer has to act: the latest end of these windows.
pub fn latest_end<'a>(gate: &Gate, windows: impl IntoIterator<Item = &'a Window>) -> u64 {
    windows
        .into_iter()
        .flat_map(|window| [window.until, window.fenced_until, window.muted_until])
        .fold(gate.scope_until, u64::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn time_is_counted_without_running_over() {
        assert_eq!(after(SECOND, Duration::from_millis(1500)), 2_500_000_000);
        assert_eq!(after(u64::MAX - 1, Duration::from_secs(1)), u64::MAX);
        assert_eq!(left(3 * SECOND, SECOND), Duration::from_secs(2));
        assert_eq!(left(SECOND, 3 * SECOND), Duration::ZERO);
        assert!(now() > 0);
    }

    #[test]
    fn a_window_is_late_unless_something_else_refused_new_locks_before_it() {
        assert_eq!(opened(None, 5, 100).late, 1);
        assert_eq!(in_time(opened(None, 5, 100)).late, 0);
        let fenced = |until| fenced(Window::default(), until);
        assert_eq!(opened(Some(fenced(6)), 5, 100).late, 0);
        assert_eq!(opened(Some(fenced(5)), 5, 100).late, 1);
        // One that is extended began when it began.
        let late = opened(None, 5, 100);
        assert_eq!(opened(Some(late), 50, 200).late, 1);
        assert_eq!(opened(Some(in_time(late)), 50, 200).late, 0);
        let again = opened(Some(ended(in_time(late), 40)), 80, 200);
        assert_eq!(again.late, 1);
    }

    #[test]
    fn a_new_window_is_audited_only_when_lockds_queue_is_done() {
        let window = opened(None, 5, 100);
        assert_eq!((window.opened, window.until), (5, 100));
        assert!(window.audited_from > window.until);
        assert_eq!(audited(window, 8).audited_from, 8);
        assert_eq!(state(&window, 99), WindowState::Opening);
        assert_eq!(state(&window, 100), WindowState::EndedEarly);
        assert_eq!(state(&audited(window, 8), 99), WindowState::Stood);
        assert_eq!(state(&audited(window, 8), 100), WindowState::Ended);
    }

    #[test]
    fn a_window_over_two_lockds_holds_and_is_not_confirmed() {
        let open = Window {
            fenced_until: 70,
            ..audited(opened(None, 5, 100), 8)
        };
        let carried = reloaded(open, 50).unwrap();
        assert_eq!((carried.opened, carried.until), (50, 100));
        assert_eq!(carried.fenced_until, 70);
        assert_eq!(state(&carried, 60), WindowState::Reloaded);
        assert_eq!(state(&carried, 100), WindowState::Reloaded);
        let fence = reloaded(ended(open, 20), 50).unwrap();
        assert_eq!((fence.opened, fence.fenced_until), (0, 70));
        assert_eq!(reloaded(open, 100), None);
    }

    #[test]
    fn an_open_window_keeps_its_beginning_when_it_is_extended() {
        let first = audited(opened(None, 5, 100), 8);
        let extended = opened(Some(first), 50, 200);
        assert_eq!(
            extended,
            Window {
                until: 200,
                ..first
            }
        );
        assert_eq!(audited(extended, 60), extended);
    }

    #[test]
    fn a_window_that_has_ended_begins_anew() {
        let ended = ended(audited(opened(None, 5, 100), 8), 40);
        assert_eq!(ended.until, 40);
        assert!(!is_open(&ended, 40));
        let again = opened(Some(ended), 50, 200);
        assert_eq!((again.opened, again.audited_from), (50, u64::MAX));
    }

    #[test]
    fn ending_never_makes_a_window_longer() {
        let window = opened(None, 5, 100);
        assert_eq!(ended(window, 300).until, 100);
    }

    #[test]
    fn a_fence_outlives_a_new_window() {
        let fenced = Window {
            fenced_until: 70,
            ..Window::default()
        };
        assert!(!is_open(&fenced, 6));
        assert_eq!(opened(Some(fenced), 6, 50).fenced_until, 70);
    }

    #[test]
    fn the_gate_is_needed_until_the_last_end() {
        let gate = Gate {
            scope_until: 30,
            ..Gate::default()
        };
        let windows = [opened(None, 5, 100), opened(None, 5, 50)];
        assert_eq!(latest_end(&gate, &windows), 100);
        assert_eq!(latest_end(&gate, []), 30);
        let fence = Window {
            fenced_until: 400,
            ..Window::default()
        };
        assert_eq!(latest_end(&gate, [&fence]), 400);
        let muted = muted(fence, 500);
        assert_eq!(latest_end(&gate, [&muted]), 500);
        // A window that opens, or a fence, leaves it.
        assert_eq!(opened(Some(muted), 5, 100).muted_until, 500);
        assert_eq!(fenced(muted, 0).muted_until, 500);
    }
}
