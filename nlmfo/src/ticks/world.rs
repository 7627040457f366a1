//! The sum of all ticks so far: the last one, rates, percentiles, histories, details and the last
//! events. Its size is bounded.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

use super::detail::Detail;
use super::events::Event;
use super::latency::Recent;
use super::tick::{Tick, VipTick};

/// Ticks that a history goes back.
pub const HISTORY: usize = 60;

/// Events that are kept.
const EVENTS: usize = 1_000;

/// Per second, over the last interval.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rates {
    /// Locks granted at once, later, or as reclaims.
    pub granted: f64,
    /// UNLOCK calls, and what lockd released by itself.
    pub released: f64,
    /// LOCK calls refused, because of grace or not.
    pub denied: f64,
}

/// One VIP over time.
#[derive(Clone, Debug, Default)]
pub struct Series {
    pub rates: Rates,
    recent: Recent,
    /// Granted and released per second, the newest last.
    pub history: VecDeque<f32>,
}

impl Series {
    /// The 50th and 99th percentile of the latency of recent LOCK calls.
    pub fn percentiles(&self) -> (Option<Duration>, Option<Duration>) {
        (self.recent.quantile(0.5), self.recent.quantile(0.99))
    }
}

/// See the top of the file.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub tick: Option<Tick>,
    pub series: BTreeMap<IpAddr, Series>,
    pub details: BTreeMap<IpAddr, Detail>,
    /// The newest last.
    pub events: VecDeque<Event>,
}

impl World {
    /// Takes the next tick. A tick from an earlier moment starts over: a recording was restarted.
    pub fn take(&mut self, mut tick: Tick) {
        let before = self.tick.take();
        let before = before.filter(|before| before.elapsed_ms <= tick.elapsed_ms);
        if before.is_none() {
            *self = World::default();
        }
        for vip in &tick.vips {
            let before = before.as_ref();
            let interval = before.map_or(0, |before| tick.elapsed_ms - before.elapsed_ms);
            let series = self.series.entry(vip.vip).or_default();
            series.take(before.and_then(|before| before.vip(vip.vip)), vip, interval);
        }
        self.series.retain(|vip, _| tick.vip(*vip).is_some());
        for detail in tick.details.drain(..) {
            self.details.insert(detail.vip, detail);
        }
        self.details.retain(|vip, _| tick.vip(*vip).is_some());
        self.events.extend(tick.events.drain(..));
        let old = self.events.len().saturating_sub(EVENTS);
        self.events.drain(..old);
        self.tick = Some(tick);
    }

    pub fn vips(&self) -> &[VipTick] {
        self.tick.as_ref().map_or(&[], |tick| &tick.vips)
    }

    pub fn vip(&self, vip: IpAddr) -> Option<&VipTick> {
        self.tick.as_ref()?.vip(vip)
    }
}

impl Series {
    /// A VIP has no rates before its second tick, unless it is new: then its counters started at 0.
    fn take(&mut self, before: Option<&VipTick>, now: &VipTick, interval_ms: u64) {
        if interval_ms == 0 {
            return;
        }
        let counted = now.counters - before.map(|before| before.counters).unwrap_or_default();
        let per_second = |count: u64| count as f64 * 1000.0 / interval_ms as f64;
        self.rates = Rates {
            granted: per_second(counted.grants()),
            released: per_second(counted.unlocked + counted.released.total()),
            denied: per_second(counted.denied + counted.denied_grace),
        };
        self.recent.add(&counted.latency_ns_log2, interval_ms);
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history
            .push_back((self.rates.granted + self.rates.released) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticks::samples as ticks;

    #[test]
    fn rates_are_of_the_time_between_ticks() {
        let mut world = World::default();
        let first = ticks::one_vip();
        let mut second = first.clone();
        second.elapsed_ms += 2_000;
        second.vips[0].counters.granted += 100;
        second.vips[0].counters.unlocked += 60;
        second.vips[0].counters.released.free_all += 20;
        second.vips[0].counters.denied_grace += 4;
        let vip = first.vips[0].vip;
        world.take(first);
        assert_eq!(world.series[&vip].rates, Rates::default());
        world.take(second);
        let expected = Rates {
            granted: 50.0,
            released: 40.0,
            denied: 2.0,
        };
        assert_eq!(world.series[&vip].rates, expected);
        assert_eq!(world.series[&vip].history, [90.0]);
    }

    #[test]
    fn nothing_grows_without_bound() {
        let mut world = World::default();
        let mut tick = ticks::in_grace();
        for _ in 0..2 * EVENTS {
            tick.elapsed_ms += 1_000;
            world.take(tick.clone());
        }
        assert!(!tick.events.is_empty() && world.events.len() == EVENTS);
        let vip = tick.vips[0].vip;
        assert_eq!(world.series[&vip].history.len(), HISTORY);
        tick.vips.clear();
        world.take(tick);
        assert!(world.series.is_empty() && world.details.is_empty());
    }

    #[test]
    fn a_detail_holds_until_the_next_one() {
        let mut world = World::default();
        let mut tick = ticks::one_vip();
        assert!(!tick.details.is_empty());
        world.take(tick.clone());
        let details = world.details.clone();
        tick.details.clear();
        tick.elapsed_ms += 1_000;
        world.take(tick);
        assert_eq!(world.details, details);
    }

    #[test]
    fn a_recording_that_is_wound_back_begins_anew() {
        let mut world = World::default();
        let tick = ticks::in_grace();
        let mut later = tick.clone();
        later.elapsed_ms += 5_000;
        world.take(later);
        world.take(tick.clone());
        assert_eq!(world.events.len(), tick.events.len());
        assert_eq!(world.tick.unwrap().elapsed_ms, tick.elapsed_ms);
    }
}
