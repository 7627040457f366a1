//! The kernel's own grace, which a restart of lockd begins.

use std::fs::OpenOptions;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, fcntl_lock};

use super::{Check, Done};
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::table::Mode;
use crate::probe::fixture::{Family, Fixture};
use crate::probe::held::{Holding, answered};
use crate::rpc::nlm::{Status, Test};
use crate::testbed::range::Range;
use crate::testbed::raw::RawClient;
use crate::testbed::server::{NFSD_GRACE, end_grace_of};
use crate::testbed::wait::{Seen, until_for};

/// Seconds of a grace that the check ends itself.
const LONG: u32 = 90;

/// Maximum time for such an end to take effect, on a machine that may be busy.
const AT_ONCE: Duration = Duration::from_secs(10);

pub fn checks() -> Vec<Check> {
    vec![
        Check::new(
            "lockd-restart",
            "a restart of lockd releases everything, and lockd serves again",
            restart,
        ),
        Check::new(
            "grace-new-refused",
            "in grace, new locks by NLM v1, v3 and v4, over TCP and UDP, IPv4 and IPv6, are refused until \
             grace has ended",
            new_refused,
        ),
        Check::new(
            "grace-calls-refused",
            "in grace, SHARE, UNLOCK, CANCEL and TEST are refused",
            calls_refused,
        ),
        Check::new(
            "grace-reclaim-granted",
            "reclaims are granted in grace, and refused outside of it",
            reclaim_granted,
        ),
        Check::new(
            "grace-ends-on-time",
            "lockd's grace lasts as long as nlm_grace_period says",
            ends_on_time,
        ),
        Check::new(
            "grace-ended-by-lockd",
            "a write to nlm_end_grace ends lockd's grace at once",
            ended_by_lockd,
        ),
        Check::new(
            "grace-ended-by-nfsd",
            "nfsd's grace refuses NLM locks too, and a write to v4_end_grace ends it at once",
            ended_by_nfsd,
        ),
        Check::new(
            "grace-blocked-not-queued",
            "a request that would wait is refused in grace, and is not granted when the lock is freed",
            blocked_in_grace,
        ),
    ]
}

fn tcp(fixture: &mut Fixture, version: NlmVersion) -> Result<RawClient> {
    let [vip, _] = Family::Ipv4.vips();
    fixture.client(vip, version, Transport::Tcp)
}

fn restart(fixture: &mut Fixture) -> Result<Done> {
    let [vip, _] = Family::Ipv4.vips();
    Holding::take(fixture, vip)?;
    fixture.restart_into_grace(LONG)?;
    let left = fixture.held(vip)?;
    ensure!(left.is_empty(), "{left} outlived lockd");
    fixture.end_lockds_grace()?;
    Holding::take(fixture, vip)?;
    Ok(Done::Shown)
}

/// A client of each NLM version that has the calls, transport and family.
fn one_of_each(fixture: &mut Fixture, versions: &[NlmVersion]) -> Result<Vec<(String, RawClient)>> {
    let mut clients = Vec::new();
    for family in Family::BOTH {
        let [vip, _] = family.vips();
        for version in versions {
            for transport in [Transport::Tcp, Transport::Udp] {
                let name = format!("by NLM {version} over {transport} and {family}");
                clients.push((name, fixture.client(vip, *version, transport)?));
            }
        }
    }
    Ok(clients)
}

fn new_refused(fixture: &mut Fixture) -> Result<Done> {
    let [vip, _] = Family::Ipv4.vips();
    let file = fixture.file(vip)?;
    fixture.restart_into_grace(LONG)?;
    let versions = [NlmVersion::V1, NlmVersion::V3, NlmVersion::V4];
    let mut clients = one_of_each(fixture, &versions)?;
    let mut ask = |expected: Status| -> Result<()> {
        for (slot, (name, client)) in clients.iter_mut().enumerate() {
            let range = Range::new(10 * slot as u64, 5);
            let status = client.lock(&file, 7, range, Mode::Write)?;
            answered(&format!("a new lock {name}"), status, expected)?;
        }
        Ok(())
    };
    ask(Status::DeniedGracePeriod).context("in grace")?;
    fixture.end_lockds_grace()?;
    ask(Status::Granted).context("after grace")?;
    Ok(Done::Shown)
}

fn calls_refused(fixture: &mut Fixture) -> Result<Done> {
    let [vip, _] = Family::Ipv4.vips();
    let file = fixture.file(vip)?;
    fixture.restart_into_grace(LONG)?;
    let refused = Status::DeniedGracePeriod;
    for (name, mut client) in one_of_each(fixture, &[NlmVersion::V4])? {
        let status = client.share(&file, 1, 0)?;
        answered(&format!("SHARE {name}"), status, refused)?;
        let status = client.unlock(&file, 7, Range::WHOLE)?;
        answered(&format!("UNLOCK {name}"), status, refused)?;
        let status = client.cancel(&file, 7, Range::WHOLE, Mode::Write)?;
        answered(&format!("CANCEL {name}"), status, refused)?;
        let told = client.test(&file, 7, Range::WHOLE, Mode::Write)?;
        ensure!(told == Test::Refused(refused), "TEST {name}: {told:?}");
    }
    let held = fixture.held(vip)?;
    ensure!(held.is_empty(), "{held} in grace");
    Ok(Done::Shown)
}

fn reclaim_granted(fixture: &mut Fixture) -> Result<Done> {
    let [vip, _] = Family::Ipv4.vips();
    let file = fixture.file(vip)?;
    fixture.restart_into_grace(LONG)?;
    let mut clients = one_of_each(fixture, &[NlmVersion::V3, NlmVersion::V4])?;
    let mut ask = |offset: u64, expected: Status| -> Result<()> {
        for (slot, (name, client)) in clients.iter_mut().enumerate() {
            let range = Range::new(offset + 10 * slot as u64, 5);
            let status = client.reclaim(&file, 7, range, Mode::Write)?;
            answered(&format!("a reclaim {name}"), status, expected)?;
        }
        Ok(())
    };
    ask(0, Status::Granted).context("in grace")?;
    fixture.end_lockds_grace()?;
    ask(1000, Status::DeniedGracePeriod).context("after grace")?;
    Ok(Done::Shown)
}

fn ends_on_time(fixture: &mut Fixture) -> Result<Done> {
    /// A multiple of the server's `nlm_timeout`, to which lockd rounds it up.
    /// and far from the default of 50 s and from what others set.
    const SECONDS: u32 = 12;
    const LIMIT: Duration = Duration::from_secs(12);
    /// The kernel ends grace in deferred work, and the machine may be busy.
    const LATE: Duration = Duration::from_secs(10);
    let [vip, _] = Family::Ipv4.vips();
    let file = fixture.file(vip)?;
    let before = Instant::now();
    fixture.restart_into_grace(SECONDS)?;
    let after = Instant::now();
    let mut client = tcp(fixture, NlmVersion::V4)?;
    until_for(LIMIT + LATE, "the end of grace", || {
        let status = client.lock(&file, 7, Range::WHOLE, Mode::Write)?;
        Ok(match status {
            Status::Granted => Seen::Yes(()),
            other => Seen::No(format!("{other:?}")),
        })
    })?;
    let ended = Instant::now();
    ensure!(
        ended - before >= LIMIT,
        "it ended {:?} after the restart began, earlier than the configured {LIMIT:?}",
        ended - before
    );
    ensure!(
        ended - after <= LIMIT + LATE,
        "it lasted {:?} and more, longer than the configured {LIMIT:?}",
        ended - after
    );
    Ok(Done::Shown)
}

/// A new lock is refused; `end` is called; then it is granted at once.
///
/// nfsd's file says that its grace has ended before locks are granted: first nfsd tells
/// nfsdcld (`nfsd4_end_grace()`, fs/nfsd/nfs4state.c, 6.12.117).
fn ended_by(fixture: &mut Fixture, end: impl FnOnce(&mut Fixture) -> Result<()>) -> Result<Done> {
    let [vip, _] = Family::Ipv4.vips();
    let file = fixture.file(vip)?;
    let mut client = tcp(fixture, NlmVersion::V4)?;
    let status = client.lock(&file, 7, Range::WHOLE, Mode::Write)?;
    answered("a new lock in grace", status, Status::DeniedGracePeriod)?;
    end(fixture)?;
    until_for(AT_ONCE, "a new lock after grace", || {
        let status = client.lock(&file, 7, Range::WHOLE, Mode::Write)?;
        Ok(match status {
            Status::Granted => Seen::Yes(()),
            other => Seen::No(format!("{other:?}")),
        })
    })?;
    Ok(Done::Shown)
}

fn ended_by_lockd(fixture: &mut Fixture) -> Result<Done> {
    fixture.restart_into_grace(LONG)?;
    ended_by(fixture, |fixture| fixture.end_lockds_grace())
}

fn ended_by_nfsd(fixture: &mut Fixture) -> Result<Done> {
    let ended = fixture.in_nfsds_grace(LONG, |fixture| {
        ended_by(fixture, |fixture| {
            end_grace_of(fixture.server.node(), NFSD_GRACE)
        })
    })?;
    Ok(ended.unwrap_or_else(Done::Unsupported))
}

fn blocked_in_grace(fixture: &mut Fixture) -> Result<Done> {
    let [vip, _] = Family::Ipv4.vips();
    // A process on the server itself: its lock outlives lockd.
    let (file, path) = fixture.file_and_path(vip)?;
    let local = OpenOptions::new().write(true).open(&path)?;
    fcntl_lock(&local, FlockOperation::NonBlockingLockExclusive)
        .with_context(|| format!("a lock on {}", path.display()))?;
    fixture.restart_into_grace(LONG)?;
    let mut client = tcp(fixture, NlmVersion::V4)?;
    let status = client.wait(&file, 7, Range::WHOLE, Mode::Write)?;
    answered("a LOCK that would wait", status, Status::DeniedGracePeriod)?;
    drop(local);
    let held = fixture.held(vip)?;
    ensure!(held.is_empty(), "{held} in grace");
    Ok(Done::Shown)
}
