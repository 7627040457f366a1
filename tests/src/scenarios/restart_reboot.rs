//! A server reboots, with its disk as it was, and its clients keep their locks.

use anyhow::{Result, ensure};

use super::whole_server::{
    self, Fixture, LEASES, START, STATE, WITHOUT_DAEMONS, addresses_up, arrive, leave,
};
use super::{Context, End, Extra, Kernels, Scenario};
use crate::cluster::Node;
use crate::guest::holders::ensure_no_theft;
use crate::guest::tool::exit;

pub const ON_A_CLUSTER: &[Scenario] = &[Scenario {
    name: "restart-reboot",
    claim: "over an orderly reboot of the server with the unit's halves, NFSv3, 4.0, 4.1 and 4.2 clients \
            keep every lock, nobody else gets one, and both graces end early; over a reboot without \
            warning they keep every lock too, and nothing is confirmed; sm-notify tells nobody late",
    run: reboots,
    kernels: Kernels::One("the halves are those of restart-keeps"),
    extra: Some(Extra::Reboots),
    only_full: Some("two reboots, and a grace of its full time"),
    ..Scenario::DEFAULT
}];

/// What the unit does after the start of the server.
const AFTER_START: [&str; 6] = [
    "restart",
    "--start-only",
    "--start-command",
    "true",
    "--state-dir",
    STATE,
];

fn reboots(context: &Context) -> Result<End> {
    let fixture = Fixture::up(context)?;
    let a = &fixture.cluster.a;
    let thief = fixture.holders.steal()?;

    // Without warning: only what nfsd and statd have on the disk is left. There is no record, so nlmfo
    // does not pause leases; the test does. `all_held` opens every file, which recalls delegations.
    a.node().write(LEASES, "0")?;
    fixture.holders.all_held()?;
    a.reboot()?;
    a.node().write(LEASES, "0")?;
    boot(a, false)?;
    let report = a.tool().json(exit::NOT_CONFIRMED, &AFTER_START)?;
    let start = &report["start"];
    ensure!(
        start["has_record"] == false
            && start["ended"] == "by_itself"
            && start["notified"]
                .as_array()
                .is_some_and(|told| !told.is_empty()),
        "{report}"
    );
    notify_late(a)?;
    fixture.holders.all_held()?;

    // With the unit's parts.
    let before_stop = ["restart", "--record-only", "--state-dir", STATE];
    a.tool().json(exit::CONFIRMED, &before_stop)?;
    a.shell(&leave())?;
    a.reboot()?;
    boot(a, true)?;
    let report = a.tool().json(exit::CONFIRMED, &AFTER_START)?;
    whole_server::ensure_kept(&report)?;
    fixture.holders.all_held()?;
    notify_late(a)?;
    ensure_no_theft(thief)?;
    fixture.holders.all_held()?;
    fixture.holders.release()?;
    Ok(End::Pass)
}

/// The order of an NFS server's boot: the network comes first. `prepared` is what the unit's first
/// part must report.
fn boot(node: &Node, prepared: bool) -> Result<()> {
    node.shell(WITHOUT_DAEMONS)?;
    whole_server::set_graces(node)?;
    let before = format!("{}\n{}\nrpc.statd --no-notify", addresses_up(), arrive());
    node.shell(&before)?;
    let prepare = ["restart", "--prepare-only", "--state-dir", STATE];
    let report = node.tool().json(exit::CONFIRMED, &prepare)?;
    ensure!(report["prepared"] == prepared, "{report}");
    node.shell(START).map(drop)
}

/// The unit after ours. Clients that it notified would reclaim when grace is over, and statd's list
/// would no longer have them.
fn notify_late(node: &Node) -> Result<()> {
    node.shell("sm-notify -d")?;
    let listed = node.shell("ls /var/lib/nfs/sm")?;
    let listed = listed.split_whitespace().count();
    // Those that hold locks; the other one may not have asked again.
    ensure!(listed >= 2, "statd has {listed} clients on its list");
    let report = node
        .tool()
        .json(exit::CONFIRMED, &["restart", "--state-dir", STATE])?;
    whole_server::ensure_kept(&report)
}
