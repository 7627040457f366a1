//! nlmfo's own grace, for one VIP: the gate on this kernel.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Check, Done, for_both};
use crate::exit::Exit;
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::programs;
use crate::observe::table::Mode;
use crate::probe::fixture::{Family, Fixture};
use crate::probe::held::answered;
use crate::rpc::nlm::Status;
use crate::testbed::command::Finished;
use crate::testbed::range::Range;
use crate::testbed::wait::{Seen, until_for};

pub fn checks() -> Vec<Check> {
    let mut checks: Vec<Check> = for_both(|family| {
        Check::new(
            format!("gate-{family}"),
            "in a VIP's grace window, its new locks are refused and its reclaims granted, over TCP and \
             UDP, by NLM v3 and v4; new locks of another VIP are granted",
            move |fixture| window(fixture, family),
        )
    })
    .collect();
    checks.push(Check::new(
        "gate-ends-on-time",
        "a window ends by itself when its time is over, and the gate is removed with it",
        ends_on_time,
    ));
    checks.push(Check::new(
        "gate-kernel-grace",
        "in a window that overlaps lockd's own grace, no reclaim is refused and no new lock granted",
        kernel_grace,
    ));
    checks.push(Check::new(
        "gate-waiter",
        "a request that waited before the window is not granted in the window",
        waiter,
    ));
    checks
}

/// Runs `work` in a window of the VIP. Returns its result, or why this node has no window.
fn in_window(
    fixture: &mut Fixture,
    vip: IpAddr,
    work: impl FnOnce(&mut Fixture) -> Result<()>,
) -> Result<Done> {
    if let Some(reason) = open(fixture, vip, "90s")? {
        return Ok(Done::Unsupported(reason));
    }
    let worked = work(fixture).context("in the window");
    let ended = fixture.nlmfo_done(&["grace", "--vip", &vip.to_string(), "--end"]);
    worked.and(ended)?;
    Ok(Done::Shown)
}

/// Opens a window of the VIP. Returns the reason if this node has none.
fn open(fixture: &Fixture, vip: IpAddr, time: &str) -> Result<Option<String>> {
    let arguments = ["grace", "--vip", &vip.to_string(), "--for", time];
    let Finished { status, stderr, .. } = fixture.nlmfo(&arguments)?;
    let said = stderr.trim();
    if status.code() == Some(Exit::Unsupported as i32) {
        return Ok(Some(said.to_owned()));
    }
    ensure!(status.success(), "nlmfo grace --vip {vip}: {said}");
    Ok(None)
}

fn window(fixture: &mut Fixture, family: Family) -> Result<Done> {
    let [vip, other] = family.vips();
    let file = fixture.file(vip)?;
    let range = |slot: usize| Range::new(10 * slot as u64, 5);
    // A connection that is older than the gate cannot be followed, and may be closed.
    let mut older = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    let mut clients = Vec::new();
    let done = in_window(fixture, vip, |fixture| {
        for version in [NlmVersion::V3, NlmVersion::V4] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let name = format!("by NLM {version} over {transport}");
                clients.push((name, fixture.client(vip, version, transport)?));
            }
        }
        for (slot, (name, client)) in clients.iter_mut().enumerate() {
            let status = client.lock(&file, 7, range(slot), Mode::Write)?;
            let what = format!("a new lock {name}");
            answered(&what, status, Status::DeniedGracePeriod)?;
            let status = client.reclaim(&file, 7, range(slot), Mode::Write)?;
            answered(&format!("a reclaim {name}"), status, Status::Granted)?;
        }
        if let Ok(status) = older.lock(&file, 7, range(50), Mode::Write) {
            let what = "a new lock over an older connection";
            answered(what, status, Status::DeniedGracePeriod)?;
        }
        let mut bystander = fixture.client(other, NlmVersion::V4, Transport::Tcp)?;
        let status = bystander.lock(&file, 7, range(60), Mode::Write)?;
        answered("another VIP's new lock", status, Status::Granted)
    })?;
    let mut afterwards = || -> Result<()> {
        for (slot, (name, client)) in clients.iter_mut().enumerate() {
            let status = client.lock(&file, 7, range(slot + 10), Mode::Write)?;
            answered(&format!("a new lock {name}"), status, Status::Granted)?;
        }
        for (name, client) in &mut clients {
            let status = client.reclaim(&file, 7, range(70), Mode::Read)?;
            let what = format!("a reclaim {name}");
            answered(&what, status, Status::DeniedGracePeriod)?;
        }
        Ok(())
    };
    afterwards().context("after the window")?;
    Ok(done)
}

fn ends_on_time(fixture: &mut Fixture) -> Result<Done> {
    const TIME: Duration = Duration::from_secs(4);
    /// The kernel ends the window; the first packet after that shows it.
    const LATE: Duration = Duration::from_secs(5);
    let [vip, _] = Family::Ipv4.vips();
    let file = fixture.file(vip)?;
    let before = Instant::now();
    if let Some(reason) = open(fixture, vip, &format!("{}s", TIME.as_secs()))? {
        return Ok(Done::Unsupported(reason));
    }
    let opened = Instant::now();
    let mut client = fixture.client(vip, NlmVersion::V4, Transport::Udp)?;
    until_for(TIME + LATE, "the window's end", || {
        Ok(match client.lock(&file, 7, Range::WHOLE, Mode::Write)? {
            Status::Granted => Seen::Yes(()),
            other => Seen::No(format!("{other:?}")),
        })
    })?;
    let ended = Instant::now();
    ensure!(
        ended - before >= TIME && ended - opened <= TIME + LATE,
        "a window of {TIME:?} ended {:?} after it was open, {:?} after it was requested",
        ended - opened,
        ended - before
    );
    until_for(LATE, "the gate to leave", || {
        let gates: Vec<String> = (programs::loaded().into_values())
            .filter(|name| name.starts_with("gate_"))
            .collect();
        Ok(match gates.is_empty() {
            true => Seen::Yes(()),
            false => Seen::No(format!("the kernel has {}", gates.join(", "))),
        })
    })?;
    Ok(Done::Shown)
}

fn kernel_grace(fixture: &mut Fixture) -> Result<Done> {
    let [vip, _] = Family::Ipv4.vips();
    let file = fixture.file(vip)?;
    in_window(fixture, vip, |fixture| {
        fixture.restart_into_grace(90)?;
        // The restart gives lockd new ports, which the gate has to follow.
        for is_kernels in [true, false] {
            let mut client = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
            let start = if is_kernels { 0 } else { 10 };
            let when = if is_kernels { "in" } else { "after" };
            let status = client.lock(&file, 7, Range::new(start, 5), Mode::Write)?;
            let what = format!("a new lock {when} lockd's grace");
            answered(&what, status, Status::DeniedGracePeriod)?;
            let status = client.reclaim(&file, 7, Range::new(start, 5), Mode::Write)?;
            let what = format!("a reclaim {when} lockd's grace");
            answered(&what, status, Status::Granted)?;
            if is_kernels {
                fixture.end_lockds_grace()?;
            }
        }
        Ok(())
    })
}

fn waiter(fixture: &mut Fixture) -> Result<Done> {
    let [vip, other] = Family::Ipv4.vips();
    let file = fixture.file(vip)?;
    let mut holder = fixture.client(other, NlmVersion::V4, Transport::Tcp)?;
    holder.granted(|raw| raw.lock(&file, 1, Range::WHOLE, Mode::Write))?;
    let mut waiter = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    let status = waiter.wait(&file, 2, Range::WHOLE, Mode::Write)?;
    answered("a LOCK that has to wait", status, Status::Blocked)?;
    if fixture.held(vip)?.waiters.is_empty() {
        return Ok(Done::Unsupported(
            "this kernel queues no NLM request".into(),
        ));
    }
    in_window(fixture, vip, |fixture| {
        let held = fixture.held(vip)?;
        ensure!(held.is_empty(), "{held} when it had opened");
        holder.granted(|raw| raw.unlock(&file, 1, Range::WHOLE))?;
        let held = fixture.held(vip)?;
        ensure!(held.is_empty(), "{held} when the lock was freed");
        Ok(())
    })
}
