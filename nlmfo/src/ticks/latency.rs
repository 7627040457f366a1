//! How long LOCK calls took, from counts per power of two.

use std::time::Duration;

use nlmfo_common::counters::LATENCY_BUCKETS;

/// Counts of calls: bucket `i` holds those of 2^i to 2^(i+1) - 1 ns.
pub type Buckets = [u64; LATENCY_BUCKETS];

/// After this time, a call counts half.
const HALF_LIFE_MS: f64 = 5_000.0;

/// The calls of the last seconds. Older calls have less weight: a percentile of a single interval would
/// jump if there are few calls.
#[derive(Clone, Debug)]
pub struct Recent {
    weights: [f32; LATENCY_BUCKETS],
}

impl Default for Recent {
    fn default() -> Self {
        Recent {
            weights: [0.0; LATENCY_BUCKETS],
        }
    }
}

impl Recent {
    /// Adds the calls of one interval.
    pub fn add(&mut self, calls: &Buckets, interval_ms: u64) {
        let fade = 0.5f64.powf(interval_ms as f64 / HALF_LIFE_MS) as f32;
        for (weight, &calls) in self.weights.iter_mut().zip(calls) {
            *weight = *weight * fade + calls as f32;
        }
    }

    /// The time that `part` (0 to 1) of the calls stayed below: the end of a bucket, so
    /// that it is never less than the real one and at most twice as much. None if there
    /// were too few calls lately.
    pub fn quantile(&self, part: f32) -> Option<Duration> {
        let total: f32 = self.weights.iter().sum();
        if total < 0.5 {
            return None;
        }
        let mut sum = 0.0;
        let bucket = self.weights.iter().position(|weight| {
            sum += weight;
            sum >= total * part && *weight > 0.0
        });
        bucket.map(end)
    }
}

/// The end of a bucket.
pub fn end(bucket: usize) -> Duration {
    Duration::from_nanos(2 << bucket)
}

/// Three digits at most and a unit: `131µs`, `2.1ms`, `17s`.
pub fn short(time: Duration, ascii: bool) -> String {
    let micro = if ascii { "us" } else { "µs" };
    let ns = time.as_nanos() as f64;
    let (value, unit) = match ns {
        ..1e3 => (ns, "ns"),
        ..1e6 => (ns / 1e3, micro),
        ..1e9 => (ns / 1e6, "ms"),
        _ => (ns / 1e9, "s"),
    };
    match value < 9.95 {
        true => format!("{value:.1}{unit}"),
        false => format!("{value:.0}{unit}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(counts: &[(usize, u64)]) -> Buckets {
        let mut buckets = [0; LATENCY_BUCKETS];
        for &(bucket, count) in counts {
            buckets[bucket] = count;
        }
        buckets
    }

    #[test]
    fn percentiles_are_the_ends_of_their_buckets() {
        let mut recent = Recent::default();
        assert_eq!(recent.quantile(0.5), None);
        recent.add(&calls(&[(10, 98), (20, 2)]), 1000);
        assert_eq!(recent.quantile(0.5), Some(Duration::from_nanos(2048)));
        assert_eq!(recent.quantile(0.99), Some(Duration::from_nanos(2 << 20)));
        assert_eq!(recent.quantile(0.0), Some(Duration::from_nanos(2048)));
    }

    #[test]
    fn old_calls_fade_and_are_gone_at_last() {
        let mut recent = Recent::default();
        recent.add(&calls(&[(20, 10)]), 1000);
        recent.add(&calls(&[(10, 10)]), 20_000);
        assert_eq!(recent.quantile(0.5), Some(Duration::from_nanos(2048)));
        for _ in 0..10 {
            recent.add(&calls(&[]), 20_000);
        }
        assert_eq!(recent.quantile(0.5), None);
    }

    #[test]
    fn times_are_short() {
        for (ns, text) in [
            (2, "2.0ns"),
            (2048, "2.0µs"),
            (131_072, "131µs"),
            (2_097_152, "2.1ms"),
            (9_990_000, "10ms"),
            (17_179_869_184, "17s"),
        ] {
            assert_eq!(short(Duration::from_nanos(ns), false), text);
        }
        assert_eq!(short(Duration::from_nanos(2048), true), "2.0us");
    }
}
