//! The time-stamp counter, which an emulated machine shares with this one.
//!
//! A kernel measures its frequency at boot against another timer. On a busy host that goes wrong, and
//! the clock of the machine runs several times as fast as the host's: leases, grace and time limits
//! are over at once, and the watchdog reports processors that are stuck.

use std::{
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

/// Long enough that the time which two readings take does not count.
const MEASURED: Duration = Duration::from_millis(100);

/// The kernel's argument with the frequency, if this machine has such a counter.
pub(super) fn argument() -> Option<String> {
    static KILOHERTZ: OnceLock<Option<u64>> = OnceLock::new();
    let khz = (*KILOHERTZ.get_or_init(kilohertz))?;
    Some(format!(" tsc_early_khz={khz}"))
}

fn kilohertz() -> Option<u64> {
    let (began, first) = reading()?;
    // Not a wait for anything: the counter is read before and after this time.
    thread::sleep(MEASURED);
    let (ended, last) = reading()?;
    let ticks = u128::from(last.checked_sub(first)?);
    u64::try_from(ticks * 1_000_000 / (ended - began).as_nanos()).ok()
}

/// The time, and the counter at that time.
fn reading() -> Option<(Instant, u64)> {
    // The one with the least time between them: others were interrupted.
    let readings = (0..100).map(|_| {
        let before = Instant::now();
        let ticks = ticks();
        (before.elapsed(), before, ticks)
    });
    let (_, time, ticks) = readings.min()?;
    Some((time, ticks?))
}

#[cfg(target_arch = "x86_64")]
fn ticks() -> Option<u64> {
    // SAFETY: every processor of this architecture has the instruction, and it only reads.
    Some(unsafe { std::arch::x86_64::_rdtsc() })
}

#[cfg(not(target_arch = "x86_64"))]
fn ticks() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree() {
        let (Some(one), Some(other)) = (kilohertz(), kilohertz()) else {
            return;
        };
        assert!(one.abs_diff(other) < one / 100, "{one} and {other} kHz");
    }
}
