//! nlmfo's own release of a VIP, proved by the lists.

use anyhow::{Result, ensure};

use super::{Check, Done, for_both};
use crate::bed::command::run;
use crate::probe::stage::{Family, Holding, Stage};

/// In the server's own `/run`.
const STATE: &str = "/run/nlmfo-probe-state";

pub fn checks() -> Vec<Check> {
    for_both(|family| {
        Check::new(
            format!("release-{family}"),
            "nlmfo failover --phase release releases exactly one VIP's locks, waiters and shares, \
             and leaves no route behind",
            move |stage| release(stage, family),
        )
    })
    .collect()
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
    let (left, others_left) = (stage.held(vip)?, stage.held(other)?);
    ensure!(left.is_empty(), "{left} are left");
    ensure!(
        others_left == others.held,
        "another VIP's {} became {others_left}",
        others.held
    );
    let after = routes(stage)?;
    ensure!(
        before == after,
        "the rules and routes were\n{before}and are now\n{after}"
    );
    Ok(Done::Shown)
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
