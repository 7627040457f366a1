//! Requests that wait, and what TEST says of locks.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use super::{Check, Done, for_both};
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::table::Mode;
use crate::probe::fixture::{Family, Fixture};
use crate::probe::held::answered;
use crate::probe::known::Symptom;
use crate::rpc::nlm::{Status, Test};
use crate::testbed::range::Range;
use crate::testbed::raw::RawClient;
use crate::testbed::wait::{Seen, until_for};

/// A freed lock goes to its waiter at once.
const SOON: Duration = Duration::from_secs(10);

pub fn checks() -> Vec<Check> {
    let mut checks: Vec<Check> = for_both(|family| {
        Check::new(
            format!("blocked-granted-{family}"),
            "a freed lock is granted to its waiter",
            move |fixture| granted(fixture, family),
        )
    })
    .collect();
    checks.extend(for_both(|family| {
        Check::new(
            format!("blocked-cancelled-{family}"),
            "a cancelled waiter is not granted when the lock is freed",
            move |fixture| cancelled(fixture, family),
        )
    }));
    checks.push(Check::new(
        "test-read-lock",
        "TEST reports a read lock to a writer, and none to a reader",
        test_call,
    ));
    checks
}

/// A lock, and a request of another client's that waits for it.
struct Pair {
    file: crate::testbed::handles::FileHandle,
    holder: RawClient,
    waiter: RawClient,
    waiters_address: IpAddr,
}

const RANGE: Range = Range::new(0, 10);
const HOLDERS_SVID: u32 = 1;
const WAITERS_SVID: u32 = 2;

fn pair(fixture: &mut Fixture, vip: IpAddr) -> Result<Pair> {
    let file = fixture.file(vip)?;
    let mut holder = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    holder.granted(|raw| raw.lock(&file, HOLDERS_SVID, RANGE, Mode::Write))?;
    let mut waiter = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    let status = waiter.wait(&file, WAITERS_SVID, RANGE, Mode::Write)?;
    answered("a LOCK that has to wait", status, Status::Blocked)?;
    if fixture.held(vip)?.waiters.is_empty() {
        return Err(Symptom::NotQueued.into());
    }
    Ok(Pair {
        file,
        holder,
        waiter,
        waiters_address: fixture.client_address(vip),
    })
}

fn granted(fixture: &mut Fixture, family: Family) -> Result<Done> {
    let [vip, _] = family.vips();
    let mut pair = pair(fixture, vip)?;
    pair.holder
        .granted(|raw| raw.unlock(&pair.file, HOLDERS_SVID, RANGE))?;
    until_for(SOON, "the waiter's lock", || {
        let held = fixture.held(vip)?;
        let is_waiters = held.locks.iter().any(|(host, _, svid, ..)| {
            host.client == pair.waiters_address && *svid == WAITERS_SVID
        });
        Ok(match is_waiters {
            true => Seen::Yes(()),
            false => Seen::No(held.to_string()),
        })
    })?;
    Ok(Done::Shown)
}

fn cancelled(fixture: &mut Fixture, family: Family) -> Result<Done> {
    let [vip, _] = family.vips();
    let mut pair = pair(fixture, vip)?;
    let status = pair
        .waiter
        .cancel(&pair.file, WAITERS_SVID, RANGE, Mode::Write)?;
    answered("CANCEL", status, Status::Granted)?;
    let held = fixture.held(vip)?;
    ensure!(held.waiters.is_empty(), "{held} after CANCEL");
    pair.holder
        .granted(|raw| raw.unlock(&pair.file, HOLDERS_SVID, RANGE))?;
    // A new request gets it now, unless the waiter has come back.
    let mut next = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    next.granted(|raw| raw.lock(&pair.file, 3, RANGE, Mode::Write))?;
    let held = fixture.held(vip)?;
    ensure!(
        held.locks.len() == 1 && held.waiters.is_empty(),
        "expected one lock, found {held}"
    );
    Ok(Done::Shown)
}

fn test_call(fixture: &mut Fixture) -> Result<Done> {
    let [vip, _] = Family::Ipv4.vips();
    let file = fixture.file(vip)?;
    let mut reader = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    reader.granted(|raw| raw.lock(&file, HOLDERS_SVID, RANGE, Mode::Read))?;
    let mut other = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    let to_reader = other.test(&file, 2, RANGE, Mode::Read)?;
    ensure!(
        matches!(to_reader, Test::Free),
        "TEST told a reader {to_reader:?}"
    );
    match other.test(&file, 2, RANGE, Mode::Write)? {
        Test::Held(_) => Ok(Done::Shown),
        Test::Free => Err(Symptom::ReadLockFree.into()),
        Test::Refused(status) => bail!("a writer was answered {status:?}"),
    }
}
