//! VIPs that share a name, and clients that know them by it or by their addresses.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::{Context, End, Kernels, Scenario};
use crate::guest::client::{Client, HeldLock};
use crate::guest::command::run;
use crate::guest::kernel_log;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::tool::{Tool, exit};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "takeover-names",
    claim: "two VIPs with one name move together: clients that monitor by name and by address reclaim all locks once; a client whose resolver cannot tell the VIPs apart loses those of one, and a warning says so",
    run: names,
    kernels: Kernels::One("resolver and statd handle names: it does not depend on the kernel"),
    ..Scenario::DEFAULT
}];

const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const NAME: &str = "nfs1";

/// Each VIP has a name of its own too, which its address resolves to.
const HOSTS: &str = "\
127.0.0.1 localhost
10.77.0.1 nfs1-a nfs1
10.77.0.2 nfs1-b nfs1
10.77.1.1 c1
10.77.1.2 c2
10.77.1.3 c3
";

/// Both addresses resolve to the common name.
const BLURRED: &str = "\
127.0.0.1 localhost
10.77.0.1 nfs1
10.77.0.2 nfs1
10.77.1.3 c3
";

const CONFIG: &str = r#"
[vip."10.77.0.1"]
names = ["nfs1"]
[vip."10.77.0.2"]
names = ["nfs1"]
"#;

/// lockd monitors a server by the name in the mount, once it is told to; it does so for
/// every client of this kernel, and for the server, whose clients need names then. A
/// client that mounts by an address has the address for a name, as without the setting.
fn names(context: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    fs::write("/etc/hosts", HOSTS).context("/etc/hosts")?;
    (lab.server.node()).write("/proc/sys/fs/nfs/nsm_use_hostnames", "1")?;
    let by_name = Client::join(&lab.server, 1)?;
    let by_address = Client::join(&lab.server, 2)?;
    let mut held = lock_through_both(&lab, &by_name, |_| NAME)?;
    held.extend(lock_through_both(&lab, &by_address, |vip| vip)?);
    let taken = move_here(&tool, exit::CONFIRMED, "90s")?;
    ensure!(missing(&taken).is_empty(), "{taken}");
    // A notification for either VIP reaches both clients for both VIPs. The second one must not make
    // them reclaim again, since grace ends with the last lock.
    for vip in vips(&taken) {
        ensure!(vip["window"]["lockd"]["reclaimed"] == 2, "{taken}");
    }

    // When lockd asks its statd to monitor the second VIP, statd (2.6.2, `sm_mon_1_svc`)
    // takes that for the first one and replaces the cookie, by which alone it could name
    // the first to lockd again.
    let blurred = Client::join(&lab.server, 3)?;
    blurred.node().write("/run/hosts", BLURRED)?;
    run((blurred.node().command("mount")).args(["--bind", "/run/hosts", "/etc/hosts"]))?;
    held.extend(lock_through_both(&lab, &blurred, |vip| vip)?);
    let taken = move_here(&tool, exit::INCOMPLETE, "30s")?;
    ensure!(missing(&taken) == [(VIPS[0], "10.77.1.3")], "{taken}");
    for vip in vips(&taken) {
        ensure!(vip["notified"]["done"] == true, "{taken}");
    }
    kernel_log::ensure_no_reclaim_refused()?;

    // Where the server's resolver is like that, it can be seen before.
    let notify = ["notify", "--vip", VIPS[0], "--client", "10.77.1.3"];
    let told = tool.expect(exit::CONFIRMED, &notify)?;
    ensure!(!told.stdout.contains(" is also "), "{}", told.stdout);
    fs::write("/etc/hosts", BLURRED).context("/etc/hosts")?;
    let told = tool.expect(exit::CONFIRMED, &notify)?;
    let warning = "10.77.0.1 resolves to nfs1, which is also 10.77.0.2";
    ensure!(told.stdout.contains(warning), "{}", told.stdout);
    Ok(End::Pass)
}

/// A lock through each VIP, by a mount with the server name that `server` says.
fn lock_through_both(
    lab: &Lab,
    client: &Client,
    server: impl Fn(&'static str) -> &'static str,
) -> Result<Vec<HeldLock>> {
    let lock = |vip: &'static str| {
        let mount = client.mount_named(&lab.server, server(vip), vip.parse()?)?;
        let file = format!("{}-{vip}", client.node().name());
        client.lock(&mount, &file, Range::new(3, 9), Mode::Write)
    };
    VIPS.into_iter().map(lock).collect()
}

/// Both VIPs are given up and taken over, on this node.
fn move_here(tool: &Tool<'_>, code: i32, grace: &str) -> Result<Value> {
    const RECORD: &str = "/tmp/record.json";
    const CONFIG_FILE: &str = "/tmp/nlmfo.toml";
    fs::write(CONFIG_FILE, CONFIG).context(CONFIG_FILE)?;
    let failover = ["failover", "--vip", VIPS[0], "--vip", VIPS[1], "--phase"];
    let release = ["release", "--record", RECORD];
    tool.expect(exit::CONFIRMED, &[&failover[..], &release].concat())?;
    let takeover = [
        "takeover",
        "--expect",
        RECORD,
        "--grace",
        grace,
        "--config",
        CONFIG_FILE,
    ];
    tool.json(code, &[&failover[..], &takeover].concat())
}

fn vips(taken: &Value) -> impl Iterator<Item = &Value> {
    taken["vips"].as_array().into_iter().flatten()
}

/// The client and the VIP of each lock that is not back.
fn missing(taken: &Value) -> Vec<(&str, &str)> {
    vips(taken)
        .flat_map(|vip| vip["missing"].as_array().into_iter().flatten())
        .map(|lock| (text(&lock["vip"]), text(&lock["client"])))
        .collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
