//! nlmfo's counters, attached by the scenario itself, to compare them with the calls made.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use nlmfo::kernel::layout;
use nlmfo::observe::counters::{CounterProbes, Counters, PerVip};
use nlmfo::observe::programs::Programs;
use nlmfo::observe::snapshot::{Snapshot, Snapshots};
use serde_json::Value;

use super::known::ensure_same;

/// The probes, and the last reading of the counters.
pub struct Counted {
    counters: CounterProbes,
    snapshots: Snapshots,
    last: PerVip,
}

impl Counted {
    /// Loads and attaches the snapshot's and the counters' programs; they stay
    /// until this is dropped.
    pub fn attach() -> Result<Counted> {
        let mut snapshots = Snapshots::attach(Programs::load(&layout::load()?)?)?;
        let counters = CounterProbes::attach(snapshots.programs())?;
        let last = counters.read()?;
        Ok(Counted {
            counters,
            snapshots,
            last,
        })
    }

    /// All that lockd holds.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        Ok(self.snapshots.take(None, Duration::ZERO)?)
    }

    /// The counts of one VIP since the last [`Counted::since`], which will include them again.
    pub fn peek(&self, vip: IpAddr) -> Result<Counters> {
        let of = |counters: &PerVip| counters.get(&vip).copied().unwrap_or_default();
        Ok(of(&self.counters.read()?) - of(&self.last))
    }

    /// What was counted since the last call, or since the probes were attached.
    pub fn since(&mut self) -> Result<PerVip> {
        let now = self.counters.read()?;
        let mut since = now.clone();
        for (vip, counters) in &mut since {
            *counters = *counters - self.last.get(vip).copied().unwrap_or_default();
        }
        self.last = now;
        Ok(since)
    }

    /// Ensures that [`Counted::since`] is this and nothing else, and that every
    /// LOCK call was timed.
    pub fn expect(&mut self, what: &str, expected: &[(IpAddr, Counters)]) -> Result<()> {
        let seen = self.since()?;
        ensure_same(
            &format!("the counters after {what}"),
            &numbers(expected.iter().copied())?,
            &numbers(seen.iter().map(|(vip, counters)| (*vip, *counters)))?,
        )?;
        for (vip, counters) in seen {
            let timed: u64 = counters.latency_ns_log2.iter().sum();
            let calls = counters.granted
                + counters.reclaimed
                + counters.denied
                + counters.denied_grace
                + counters.blocked;
            ensure!(
                timed == calls,
                "{what}: {timed} LOCK calls of {vip} timed, {calls} counted"
            );
        }
        Ok(())
    }
}

/// Every counter that is not zero, by its name in `--json`; times apart.
fn numbers(
    counters: impl Iterator<Item = (IpAddr, Counters)>,
) -> Result<BTreeSet<(IpAddr, String, u64)>> {
    let mut numbers = BTreeSet::new();
    for (vip, counters) in counters {
        let Value::Object(fields) = serde_json::to_value(counters)? else {
            continue;
        };
        for (name, value) in fields {
            match value {
                Value::Number(number) => {
                    numbers.insert((vip, name, number.as_u64().unwrap_or_default()));
                }
                Value::Object(causes) => {
                    numbers.extend(causes.into_iter().map(|(cause, number)| {
                        let number = number.as_u64().unwrap_or_default();
                        (vip, format!("{name} {cause}"), number)
                    }));
                }
                _ => {}
            }
        }
    }
    numbers.retain(|(_, _, number)| *number > 0);
    Ok(numbers)
}
