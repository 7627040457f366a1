//! Locks of one owner merge and split; the lists and the snapshot must agree on it.

use anyhow::{Result, ensure};

use super::{Check, Done, for_both};
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::table::Mode;
use crate::probe::fixture::{Family, Fixture};
use crate::testbed::range::Range;

pub fn checks() -> Vec<Check> {
    for_both(|family| {
        Check::new(
            format!("merge-split-{family}"),
            "adjacent locks of one owner merge, an unlocked hole splits them, and snapshot and \
             /proc/locks agree",
            move |fixture| merge_and_split(fixture, family),
        )
    })
    .collect()
}

fn merge_and_split(fixture: &mut Fixture, family: Family) -> Result<Done> {
    let [vip, _] = family.vips();
    let file = fixture.file(vip)?;
    let mut client = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    for range in [Range::new(0, 10), Range::new(10, 10), Range::new(5, 10)] {
        client.granted(|raw| raw.lock(&file, 7, range, Mode::Write))?;
    }
    ensure_ranges(fixture, family, &[(0, 19)])?;
    client.granted(|raw| raw.unlock(&file, 7, Range::new(5, 5)))?;
    ensure_ranges(fixture, family, &[(0, 4), (10, 19)])?;
    // Another mode splits, too.
    client.granted(|raw| raw.lock(&file, 7, Range::new(12, 2), Mode::Read))?;
    ensure_ranges(fixture, family, &[(0, 4), (10, 11), (12, 13), (14, 19)])?;
    client.granted(|raw| raw.unlock(&file, 7, Range::WHOLE))?;
    ensure_ranges(fixture, family, &[])?;
    Ok(Done::Shown)
}

fn ensure_ranges(fixture: &mut Fixture, family: Family, expected: &[(u64, u64)]) -> Result<()> {
    let [vip, _] = family.vips();
    let mut seen: Vec<(u64, u64)> = (fixture.held(vip)?.locks.iter())
        .map(|(_, _, _, range, _)| (range.start, range.end))
        .collect();
    seen.sort_unstable();
    let listed: Vec<(u64, u64)> = (fixture.server.locks()?.iter())
        .map(|lock| (lock.start, lock.end.unwrap_or(u64::MAX)))
        .collect();
    ensure!(
        seen == expected && listed == expected,
        "expected the ranges {expected:?}; the snapshot has {seen:?}, /proc/locks {listed:?}"
    );
    Ok(())
}
