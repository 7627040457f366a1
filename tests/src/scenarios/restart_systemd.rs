//! An administrator's `systemctl restart nfs-server` with the units of the packages, under a real
//! systemd.

use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use nlmfo::testbed::server::{
    LOCKD_GRACE, NLM_GRACE_PERIOD, add_vip, end_grace_of, export_options, make_bridge, mount,
};
use serde_json::Value;

use super::restart::{LONG_GRACE, SHORT_LEASE, VIPS, ensure_kept};
use super::{Context, End, Kernels, Machine, Manager, Scenario};
use crate::guest::command::{run, tool};
use crate::guest::holders::{Holders, ensure_no_theft};
use crate::guest::node::TestNode;
use crate::guest::systemd::Systemd;

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "restart-systemd",
    claim: "over `systemctl restart nfs-server`, twice in a row and as a package upgrade does it, with nothing \
            but `systemctl enable nlmfo-restart` before, NFSv3, 4.0, 4.1 and 4.2 clients keep every lock, \
            nobody else gets one, and both graces end early",
    run: restarts,
    kernels: Kernels::One("the halves are those of restart-keeps"),
    machine: Machine::Own("it has a systemd"),
    manager: Some(Manager::Systemd),
    ..Scenario::DEFAULT
}];

const SERVER: &str = "nfs-server.service";
const OURS: &str = "nlmfo-restart.service";

fn restarts(context: &Context) -> Result<End> {
    let node = TestNode::root();
    install(context)?;
    let vips = VIPS.map(|vip| vip.parse().expect("an address"));
    configure(&node, &vips)?;
    let systemd = Systemd::start()?;
    systemd.systemctl(&["enable", OURS])?;
    systemd.systemctl(&["start", SERVER])?;
    end_grace_of(&node, LOCKD_GRACE)?;
    let mut holders = Holders::up(&node, Path::new("/export"), &vips)?;
    if context.kernel.starts_with("6.1.") {
        // As in restart-keeps.
        holders.drop_holder(5)?;
    }
    let thief = holders.steal()?;

    let said = || format!("{}\n{}", systemd.journal(OURS), systemd.journal(SERVER));
    let kept = |what: &str| {
        let report = report_of(&systemd)?;
        ensure_kept(&report)?;
        holders.all_held()?;
        eprintln!("kept over {what}");
        anyhow::Ok(())
    };
    for _ in 0..2 {
        let started = Instant::now();
        systemd.systemctl(&["restart", SERVER])?;
        eprintln!("restarted in {:.1} s", started.elapsed().as_secs_f64());
    }
    kept("two restarts in a row").with_context(said)?;

    // As the scripts of Debian's packages do it, one after the other.
    systemd.systemctl(&["stop", SERVER])?;
    systemd.systemctl(&["restart", "rpcbind.service"])?;
    systemd.systemctl(&["restart", "rpc-statd.service"])?;
    systemd.systemctl(&["daemon-reload"])?;
    systemd.systemctl(&["start", SERVER])?;
    kept("an upgrade").with_context(said)?;

    ensure_no_theft(thief)?;
    holders.all_held()?;
    holders.release()?;
    Ok(End::Pass)
}

/// The report of the last restart, once it has followed all reclaims.
fn report_of(systemd: &Systemd) -> Result<Value> {
    systemd.wait_for(OURS, "active")?;
    const LAST: &str = "/run/nlmfo/last-restart.json";
    let text = fs::read_to_string(LAST).context(LAST)?;
    let stored: Value = serde_json::from_str(&text).context(LAST)?;
    Ok(stored["report"].clone())
}

/// nlmfo, with its units.
fn install(context: &Context) -> Result<()> {
    fs::copy(&context.nlmfo, "/usr/sbin/nlmfo").context("/usr/sbin/nlmfo")?;
    for unit in [OURS, "nlmfo-restart-prepare.service"] {
        let to = Path::new("/etc/systemd/system").join(unit);
        fs::copy(Path::new("/dist/systemd").join(unit), &to)
            .with_context(|| to.display().to_string())?;
    }
    // An emulated machine that shares its processor is many times slower than the unit expects.
    let folder = Path::new("/etc/systemd/system/nlmfo-restart.service.d");
    fs::create_dir_all(folder)?;
    let settings = "[Service]\nTimeoutStartSec=15min\nTimeoutStopSec=5min\n";
    fs::write(folder.join("emulated.conf"), settings).context("emulated.conf")
}

/// An export, addresses, and graces that are long enough to show that they were ended early.
fn configure(node: &TestNode, vips: &[IpAddr]) -> Result<()> {
    let modules = ["sunrpc", "lockd", "nfsd", "nfsv3", "nfsv4", "bridge"];
    run(tool("modprobe").arg("-a").args(modules))?;
    make_bridge(node)?;
    vips.iter().try_for_each(|vip| add_vip(node, *vip))?;
    mount("tmpfs", node, Path::new("/export"))?;
    mount("nfsd", node, Path::new("/proc/fs/nfsd"))?;
    node.write(NLM_GRACE_PERIOD, LONG_GRACE)?;
    let settings =
        format!("[nfsd]\nthreads=4\ngrace-time={LONG_GRACE}\nlease-time={SHORT_LEASE}\n");
    fs::write("/etc/nfs.conf", settings).context("/etc/nfs.conf")?;
    let export = format!("/export *({})\n", export_options(1));
    fs::write("/etc/exports", export).context("/etc/exports")
}
