//! nlmfo's own release of a VIP, proved by the lists.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tokio::runtime::Builder;

use super::{Check, Done, for_both};
use crate::bed::command::run;
use crate::bed::range::Range;
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::table::Mode;
use crate::probe::held::{Held, Holding};
use crate::probe::stage::{Family, Stage};
use crate::release::free_all::FreeAll;
use crate::release::reboot::Reboot;
use crate::release::{Job, Target, Turn, Way, target};

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
            move |stage| release(stage, family),
        )
    })
    .collect();
    checks.extend(for_both(|family| {
        Check::new(
            format!("release-free-all-{family}"),
            "calls in clients' names release exactly one VIP's locks, waiters and shares, those \
             of NLM v1 too",
            move |stage| free_all(stage, family),
        )
    }));
    checks.push(Check::new(
        "release-reboot-notice",
        "a private SM_NOTIFY to lockd releases a monitored client's locks, and no other client's",
        reboot_notice,
    ));
    checks
}

fn free_all(stage: &mut Stage, family: Family) -> Result<Done> {
    let [vip, other] = family.vips();
    let _mine = Holding::take(stage, vip)?;
    let others = Holding::take(stage, other)?;
    let before = routes(stage)?;
    let way = FreeAll {
        netns: stage.netns(),
        deadline: CALL,
        overall: 3 * CALL,
    };
    let targets = target::targets(&stage.table()?, vip, stage.netns());
    by_way(stage, &way, vip, &targets)?;
    ensure_released(stage, vip, &Held::default(), other, &others.held)?;
    ensure_same_routes(stage, &before)?;
    Ok(Done::Shown)
}

fn reboot_notice(stage: &mut Stage) -> Result<Done> {
    let [vip, other] = Family::Ipv4.vips();
    let file = stage.file(vip)?;
    let mut bystander = stage.client(vip, NlmVersion::V4, Transport::Tcp)?;
    bystander.granted(|raw| raw.lock(&file, 7, Range::new(100, 5), Mode::Write))?;
    let kept = stage.held(vip)?;
    let mut client = stage.client(vip, NlmVersion::V4, Transport::Tcp)?;
    for start in [0, 10, 20] {
        client.granted(|raw| raw.lock(&file, 7, Range::new(start, 5), Mode::Write))?;
    }
    let address = stage.client_address(vip);
    let table = stage.table()?;
    let way = Reboot {
        elsewhere: target::clients_of_others(&table, vip, stage.netns()),
        deadline: CALL,
    };
    let mut targets = target::targets(&table, vip, stage.netns());
    targets.retain(|target| target.host.client == address);
    by_way(stage, &way, vip, &targets)?;
    ensure_released(stage, vip, &kept, other, &Held::default())?;
    Ok(Done::Shown)
}

/// Releases by one way alone, each of whose calls must succeed.
fn by_way<W: Way + Sync>(stage: &Stage, way: &W, vip: IpAddr, targets: &[Target]) -> Result<()> {
    ensure!(!targets.is_empty(), "the snapshot shows no host of {vip}");
    let report = stage.server.place().within(|| {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(runtime.block_on(async {
            let turn = &Turn::take(CALL).await?;
            way.release(&Job { vip, targets, turn }).await
        })?)
    })?;
    if let Some(failure) = report.failures().next() {
        bail!("{}: {:?}", failure.host, failure.outcome);
    }
    Ok(())
}

fn release(stage: &mut Stage, family: Family) -> Result<Done> {
    let [vip, other] = family.vips();
    let _mine = Holding::take(stage, vip)?;
    let others = Holding::take(stage, other)?;
    let before = routes(stage)?;
    stage.nlmfo_done(&[
        "failover",
        "--vip",
        &vip.to_string(),
        "--phase",
        "release",
        "--no-fence",
        "--state-dir",
        STATE,
    ])?;
    ensure_released(stage, vip, &Held::default(), other, &others.held)?;
    ensure_same_routes(stage, &before)?;
    Ok(Done::Shown)
}

/// Of `vip`'s, `kept` must be left, and of `other`'s all.
fn ensure_released(
    stage: &mut Stage,
    vip: IpAddr,
    kept: &Held,
    other: IpAddr,
    others: &Held,
) -> Result<()> {
    let (left, others_left) = (stage.held(vip)?, stage.held(other)?);
    ensure!(left == *kept, "{left} are left, {kept} should be");
    ensure!(
        others_left == *others,
        "another VIP's {others} became {others_left}"
    );
    Ok(())
}

fn ensure_same_routes(stage: &Stage, before: &str) -> Result<()> {
    let after = routes(stage)?;
    ensure!(
        before == after,
        "the rules and routes were\n{before}and are now\n{after}"
    );
    Ok(())
}

/// The server's rules, and its routes but for those in the kernel's cache.
fn routes(stage: &Stage) -> Result<String> {
    let place = stage.server.place();
    let mut text = String::new();
    for arguments in [
        &["rule", "show"][..],
        &["-6", "rule", "show"],
        &["route", "show", "table", "all"],
        &["-6", "route", "show", "table", "all"],
        &["-brief", "link", "show"],
    ] {
        text += &run(place.command("ip").args(arguments))?;
    }
    Ok(text)
}
