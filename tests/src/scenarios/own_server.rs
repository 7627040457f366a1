//! VIPs that are NFS servers of their own.

mod full;
mod killed;
mod listings;
mod moves;
mod same;
mod users;

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::Transport;
use serde_json::Value;

pub use self::moves::ON_A_CLUSTER;
pub(crate) use self::moves::{failover_to, on_a_cluster, two_on_a_cluster};
use self::users::{ASKED, HELD, wanted};
pub(crate) use self::users::{Asks, User, Users, VERSIONS};
use super::{Context, End, Kernels, Machine, Scenario};
use crate::cluster::documented;
use crate::guest::client::{Client, HeldLock, Mount};
use crate::guest::command::run;
use crate::guest::locker::Mode;
use crate::guest::node::TestNode;
use crate::guest::server::{NLM_GRACE_PERIOD, NLM_TIMEOUT, make_bridge};
use crate::guest::tool::{Tool, exit};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "own-server-killed",
        claim: "after SIGKILL at any step of a start, stop or restart of a server of its own, the \
                same command again goes on, and clients of NFSv3 and 4.2 keep their locks",
        run: killed::killed,
        kernels: Kernels::One(SHARED_LOCKD),
        machine: Machine::Own("nfsd of several network namespaces"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "own-server-full",
        claim: "the filesystem of a server of its own is full: it restarts, and clients of NFSv3,                 4.0, 4.1 and 4.2 keep their locks",
        run: full::full,
        kernels: Kernels::One(SHARED_LOCKD),
        machine: Machine::Own("nfsd of several network namespaces"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "own-servers",
        claim: "two VIPs are servers of their own on one node: one stops and starts, its clients of \
            NFSv3, 4.0, 4.1 and 4.2 keep their locks, and clients of the other notice nothing",
        run: stop_and_start,
        kernels: Kernels::One(SHARED_LOCKD),
        only_full: Some("grace may last its full time"),
        machine: Machine::Own("nfsd of several network namespaces, and NFSv4 clients of each"),
        ..Scenario::DEFAULT
    },
];

/// 6.1 releases NFSv3 locks only when the lockd of the last network namespace stops.
const SHARED_LOCKD: &str = "6.1's lockd keeps the locks of one server as long as another one runs";

/// A server of the scenario: where its clients mount it.
pub(crate) struct Own {
    name: &'static str,
    vip: IpAddr,
    folder: PathBuf,
}

impl Own {
    /// The server of this number, and its description.
    pub(super) fn describe(
        number: u8,
        name: &'static str,
        device: &str,
        link: &str,
    ) -> Result<(Own, String)> {
        let text = format!(
            "[server.{name}]\n\
             vips = [\"10.77.0.{number}/16\", \"fd77::{number}/64\"]\n\
             link = {link}\n\
             filesystem = {{ device = \"{device}\", path = \"/srv/{name}\", type = \"ext4\" }}\n\
             exports = [\"/srv/{name} *(rw,no_root_squash,no_subtree_check,insecure,fsid={number})\"]\n\
             scope = \"{name}-nfs\"\n\
             state = \"/srv/{name}/.nlmfo\"\n\
             lease = \"10s\"\n\
             grace = \"40s\"\n\
             threads = 4\n\n"
        );
        let own = Own {
            name,
            vip: format!("10.77.0.{number}").parse()?,
            folder: format!("/srv/{name}").into(),
        };
        Ok((own, text))
    }

    /// As the documentation describes one for Pacemaker.
    pub(super) fn documented(
        number: u8,
        name: &'static str,
        device: &str,
    ) -> Result<(Own, String)> {
        let text = documented("Pacemaker: a server of its own", "toml")?
            .replace("192.0.2.10/24", &format!("10.77.0.{number}/16"))
            .replace("/dev/vg0/mail", device)
            .replace("fsid=10", &format!("fsid={number}"))
            .replace("\"15s\"", "\"10s\"")
            .replace("\"60s\"", "\"40s\"")
            .replace("mail", name);
        let own = Own {
            name,
            vip: format!("10.77.0.{number}").parse()?,
            folder: format!("/srv/{name}").into(),
        };
        Ok((own, text))
    }

    pub(crate) fn mount(&self, client: &Client, minor: Option<u8>) -> Result<Mount> {
        match minor {
            None => client.mount_export(&self.folder, self.vip, Transport::Tcp),
            Some(minor) => client.mount_export_nfs4(&self.folder, self.vip, minor),
        }
    }

    pub(crate) fn status(&self, tool: &Tool) -> Result<Value> {
        tool.json(exit::CONFIRMED, &["server", "status", self.name])
    }

    fn start(&self, tool: &Tool) -> Result<Value> {
        started(tool, &["server", "start", self.name, "--json"], "")
    }

    fn stop(&self, tool: &Tool) -> Result<Value> {
        let stopped = tool.json(exit::CONFIRMED, &["server", "stop", self.name])?;
        ensure!(
            stopped["release"]["stopped"] == true && stopped["disturbed"] == Value::Array(vec![]),
            "{stopped}"
        );
        Ok(stopped)
    }
}

/// Runs a command that starts a server, whose report is at this place of its output. All of the
/// record came back, except locks that their owners were releasing when the server stopped.
fn started(tool: &Tool, arguments: &[&str], place: &str) -> Result<Value> {
    let finished = tool.run(arguments)?;
    let said: Value = serde_json::from_str(&finished.stdout)
        .with_context(|| format!("{} {}", finished.stdout, finished.stderr))?;
    let report = said.pointer(place).context("no report of a start")?;
    let is_asked = |range: &Value| range["start"] == ASKED.start;
    let missing = &report["reclaim"]["missing"];
    let none = Vec::new();
    let of = |kind: &str| missing[kind].as_array().unwrap_or(&none).clone();
    let is_expected = of("locks").iter().all(|lock| is_asked(&lock["range"]))
        && of("nfs4").iter().all(|line| {
            let ranges = line["ranges"].as_array().unwrap_or(&none).clone();
            !ranges.is_empty() && ranges.iter().all(|range| is_asked(&range["range"]))
        });
    let codes = [exit::CONFIRMED, exit::INCOMPLETE];
    ensure!(
        codes.contains(&finished.code()) && is_expected,
        "{}: {said}",
        finished.code()
    );
    Ok(said)
}

/// An empty filesystem on a loop device.
pub(super) fn loop_device(name: &str) -> Result<String> {
    const BYTES: u64 = 32 << 20;
    let image = format!("/tmp/{name}.img");
    File::create(&image)
        .and_then(|file| file.set_len(BYTES))
        .context(image.clone())?;
    let device = run(Command::new("losetup").args(["-f", "--show", &image]))?;
    run(Command::new("mkfs.ext4").args(["-q", device.trim()]))?;
    Ok(device.trim().to_owned())
}

/// A node that is a bridge for clients and servers of their own.
pub(super) fn bridge() -> Result<TestNode> {
    run(Command::new("modprobe").args([
        "-a", "sunrpc", "lockd", "nfsd", "nfsv3", "nfsv4", "bridge", "loop", "macvlan", "veth",
    ]))?;
    let root = TestNode::root();
    make_bridge(&root)?;
    for (file, seconds) in [(NLM_TIMEOUT, "3"), (NLM_GRACE_PERIOD, "40")] {
        root.write(file, seconds)?;
    }
    Ok(root)
}

fn stop_and_start(context: &Context) -> Result<End> {
    let root = bridge()?;
    let veth = "{ kind = \"veth\", bridge = \"br0\" }";
    let macvlan = "{ kind = \"macvlan\", parent = \"br0\" }";
    let (mail, first) = Own::describe(1, "mail", &loop_device("mail")?, veth)?;
    let (data, second) = Own::describe(2, "data", &loop_device("data")?, macvlan)?;
    let tool = Tool::new(&context.nlmfo, &root);
    // A start that fails in its last step, and leaves nothing behind.
    let unreachable = format!("{}\ngateways = [\"10.99.0.1\"]\n", first.trim_end());
    fs::write("/etc/nlmfo.toml", unreachable)?;
    let failed = tool.expect(exit::COULD_NOT_RUN, &["server", "start", "mail"])?;
    ensure!(
        failed.stderr.contains("10.99.0.1") && failed.stderr.contains("nothing of it is left"),
        "{}",
        failed.stderr
    );
    fs::write("/etc/nlmfo.toml", [first, second].concat())?;
    for own in [&mail, &data] {
        tool.json(exit::CONFIRMED, &["server", "check", own.name])?;
        let started = own.start(&tool)?;
        ensure!(started["reclaim"].is_null(), "of no client: {started}");
        eprintln!("{} started in {} ms", own.name, started["took_ms"]);
    }
    ensure!(
        !Path::new("/srv/mail/.nlmfo").exists(),
        "mounted outside of its namespace"
    );
    let users = Users::start(&root, &mail, &data, &VERSIONS, Asks::OfItsOwn)?;
    listings::both(&tool)?;

    let began = Instant::now();
    let stopped = mail.stop(&tool)?;
    ensure!(mail.status(&tool)?["state"] == "stopped");
    let started = mail.start(&tool)?;
    let reclaim = &started["reclaim"];
    ensure!(
        reclaim["grace"]["nfsd"] == true
            && reclaim["grace"]["lockd"] == true
            && reclaim["expected"].as_u64() >= Some(4),
        "{started}"
    );
    eprintln!(
        "stop {} ms, start {} ms of which reclaims {} ms, ended {}; both {:?}",
        stopped["took_ms"],
        started["took_ms"],
        reclaim["back_after_ms"],
        reclaim["ended"],
        began.elapsed()
    );
    let other = data.status(&tool)?;
    ensure!(
        other["grace"]["nfsd"] == false && other["grace"]["lockd"] == false,
        "{other}"
    );
    users.finish_quick()?;
    restart(&root, &tool, &data)?;
    data.stop(&tool)?;
    // The mail server goes with everything that nlmfo has left.
    tool.json(exit::CONFIRMED, &["cleanup"])?;
    let left = fs::read_dir("/run/nlmfo/servers").map_or(0, Iterator::count);
    ensure!(left == 0, "{left} servers are left");
    Ok(End::Pass)
}

/// The server restarts in one command, and its clients keep their locks.
fn restart(bridge: &TestNode, tool: &Tool, own: &Own) -> Result<()> {
    let client = Client::join_bridge(bridge, 8)?;
    let mut held = Vec::new();
    for minor in [None, Some(1)] {
        let mount = own.mount(&client, minor)?;
        held.push(client.lock(&mount, &format!("again-{minor:?}"), HELD, Mode::Write)?);
    }
    let restarted = tool.json(exit::CONFIRMED, &["server", "restart", own.name])?;
    ensure!(
        restarted["start"]["reclaim"]["expected"].as_u64() >= Some(2),
        "{restarted}"
    );
    eprintln!("restart {} ms", restarted["took_ms"]);
    held.into_iter().try_for_each(HeldLock::release)
}
