//! nlmfo's own release of a VIP, proved by the lists.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::runtime::Builder;

use super::{Check, Done, for_both};
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::table::Mode;
use crate::probe::fixture::{Family, Fixture};
use crate::probe::held::{Held, Holding};
use crate::release::free_all::FreeAll;
use crate::release::reboot::Reboot;
use crate::release::{Job, Method, Target, Turn, target};
use crate::testbed::command::run;
use crate::testbed::range::Range;

/// In the server's own `/run`.
const STATE: &str = "/run/nlmfo-probe-state";

/// How long one call may take.
const CALL: Duration = Duration::from_secs(10);

pub fn checks() -> Vec<Check> {
    let mut checks: Vec<Check> = for_both(|family| {
        Check::new(
            format!("release-{family}"),
            "nlmfo failover --phase release releases exactly one VIP's locks, waiters and shares, \
             and leaves no route behind",
            move |fixture| release(fixture, family),
        )
    })
    .collect();
    checks.extend(for_both(|family| {
        Check::new(
            format!("release-free-all-{family}"),
            "FREE_ALL calls for clients release exactly one VIP's locks, waiters and shares, \
             including those of NLM v1",
            move |fixture| free_all(fixture, family),
        )
    }));
    checks.push(Check::new(
        "release-reboot-notice",
        "a private SM_NOTIFY to lockd releases a monitored client's locks, and no other client's",
        reboot_notice,
    ));
    checks
}

fn free_all(fixture: &mut Fixture, family: Family) -> Result<Done> {
    let [vip, other] = family.vips();
    let _mine = Holding::take(fixture, vip)?;
    let others = Holding::take(fixture, other)?;
    let before = routes(fixture)?;
    let targets = target::targets(&fixture.table()?, vip, fixture.netns());
    by_method(fixture, &FreeAll, vip, &targets, &BTreeSet::new())?;
    ensure_released(fixture, vip, &Held::default(), other, &others.held)?;
    ensure_same_routes(fixture, &before)?;
    Ok(Done::Shown)
}

fn reboot_notice(fixture: &mut Fixture) -> Result<Done> {
    let [vip, other] = Family::Ipv4.vips();
    let file = fixture.file(vip)?;
    let mut bystander = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    bystander.granted(|raw| raw.lock(&file, 7, Range::new(100, 5), Mode::Write))?;
    let kept = fixture.held(vip)?;
    let mut client = fixture.client(vip, NlmVersion::V4, Transport::Tcp)?;
    for start in [0, 10, 20] {
        client.granted(|raw| raw.lock(&file, 7, Range::new(start, 5), Mode::Write))?;
    }
    let address = fixture.client_address(vip);
    let table = fixture.table()?;
    let elsewhere = target::clients_of_others(&table, vip, fixture.netns());
    let mut targets = target::targets(&table, vip, fixture.netns());
    targets.retain(|target| target.host.client == address);
    by_method(fixture, &Reboot, vip, &targets, &elsewhere)?;
    ensure_released(fixture, vip, &kept, other, &Held::default())?;
    Ok(Done::Shown)
}

/// Releases by one method only; each of its calls must succeed.
fn by_method(
    fixture: &Fixture,
    method: &dyn Method,
    vip: IpAddr,
    targets: &[Target],
    elsewhere: &BTreeSet<IpAddr>,
) -> Result<()> {
    ensure!(!targets.is_empty(), "the snapshot shows no host of {vip}");
    let report = fixture.server.node().within(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(async {
            let turn = &Turn::take(CALL).await?;
            let job = Job {
                vip,
                netns: fixture.netns(),
                targets,
                elsewhere,
                filesystems: &[],
                turn,
                deadline: 3 * CALL,
            };
            method.release(&job).await
        })?)
    })?;
    if let Some(failure) = report.failures().next() {
        bail!("{}: {:?}", failure.host, failure.outcome);
    }
    Ok(())
}

fn release(fixture: &mut Fixture, family: Family) -> Result<Done> {
    let [vip, other] = family.vips();
    let _mine = Holding::take(fixture, vip)?;
    let others = Holding::take(fixture, other)?;
    let before = routes(fixture)?;
    fixture.nlmfo_done(&[
        "failover",
        "--vip",
        &vip.to_string(),
        "--phase",
        "release",
        "--no-fence",
        "--state-dir",
        STATE,
    ])?;
    ensure_released(fixture, vip, &Held::default(), other, &others.held)?;
    ensure_same_routes(fixture, &before)?;
    Ok(Done::Shown)
}

/// Of `vip`'s, `kept` must be left, and of `other`'s all.
fn ensure_released(
    fixture: &mut Fixture,
    vip: IpAddr,
    kept: &Held,
    other: IpAddr,
    others: &Held,
) -> Result<()> {
    let (left, others_left) = (fixture.held(vip)?, fixture.held(other)?);
    ensure!(left == *kept, "expected {kept} to remain, found {left}");
    ensure!(
        others_left == *others,
        "another VIP's {others} became {others_left}"
    );
    Ok(())
}

fn ensure_same_routes(fixture: &Fixture, before: &str) -> Result<()> {
    let after = routes(fixture)?;
    ensure!(
        before == after,
        "the rules and routes were\n{before}and are now\n{after}"
    );
    Ok(())
}

/// The server's rules, and its routes but for those in the kernel's cache.
fn routes(fixture: &Fixture) -> Result<String> {
    let node = fixture.server.node();
    let mut text = String::new();
    for arguments in [
        &["rule", "show"][..],
        &["-6", "rule", "show"],
        &["route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
        &["-brief", "link", "show"],
    ] {
        text += &run(node.command("ip").args(arguments))?;
    }
    Ok(text)
}
