//! How grace ends: by itself, and leaving in the kernel what it found there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::nlm::Status;

use super::{Context, End, Kernels, Scenario};
use crate::guest::command::run;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::raw::RawNet;
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "grace-ends",
        claim: "a window ends by itself, the gate is removed, and its report can still be listed",
        run: ends,
        kernels: Kernels::One("gate-killed shows the end of a window on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "grace-foreign-qdisc",
        claim: "a clsact qdisc from before the gate remains after it, and no other does",
        run: foreign_qdisc,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "grace-leftovers",
        claim: "a half-loaded gate is loaded again; leftovers of old namespaces are removed",
        run: leftovers,
        kernels: Kernels::One("only pins are involved; gate-killed cleans up on every kernel"),
        ..Scenario::DEFAULT
    },
];

const VIP: &str = "10.77.0.1";
const PINS: &str = "/sys/fs/bpf/nlmfo";

fn ends(context: &Context) -> Result<End> {
    let lab = Lab::up(&[VIP], 0)?;
    let net = RawNet::join(&lab.server)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let file = net.file(&lab.server, lab.vips[0], "file")?;
    let mut client = net.client(1, lab.vips[0], NlmVersion::V4, Transport::Tcp)?;
    let range = Range::new(0, 1);

    tool.expect(exit::CONFIRMED, &["grace", "--vip", VIP, "--for", "300s"])?;
    // It is older than the window, and closed.
    drop(client);
    client = net.client(1, lab.vips[0], NlmVersion::V4, Transport::Tcp)?;
    let status = client.nm_lock(&file, 1, range, Mode::Write)?;
    ensure!(status == Status::DeniedGracePeriod, "{status:?}");
    // From now on another end; what was counted stays.
    let opened = tool.json(exit::CONFIRMED, &["grace", "--vip", VIP, "--for", "20s"])?;
    ensure!(opened["windows"][0]["lockd"]["refused"] == 1, "{opened}");

    until("the keeper to take the gate out of the kernel", || {
        Ok(match fs::exists(PINS)? {
            false => Seen::Yes(()),
            true => Seen::No(format!("{PINS} is there")),
        })
    })?;
    client.granted(|raw| raw.nm_lock(&file, 1, range, Mode::Write))?;
    let listed = tool.json(exit::CONFIRMED, &["grace", "--list"])?;
    let ended = &listed["ended"];
    ensure!(
        listed["windows"].as_array().is_some_and(Vec::is_empty)
            && ended["good"] == true
            && ended["windows"][0]["vip"] == VIP
            && ended["windows"][0]["open"] == false
            && ended["windows"][0]["lockd"]["refused"] == 1,
        "{listed}"
    );
    let left = tool.expect(exit::CONFIRMED, &["cleanup"])?;
    ensure!(left.stdout.contains("nothing"), "{}", left.stdout);
    Ok(End::Pass)
}

fn foreign_qdisc(context: &Context) -> Result<End> {
    let lab = Lab::up(&[VIP], 0)?;
    let node = lab.server.node();
    let tool = Tool::new(&context.nlmfo, node);
    node.ip("link add foreign type dummy\nlink add none type dummy\n")?;
    let tc = |arguments: &[&str]| run(node.command("tc").args(arguments));
    tc(&["qdisc", "add", "dev", "foreign", "clsact"])?;

    for _ in 0..2 {
        let opened = tool.json(exit::CONFIRMED, &["grace", "--vip", VIP, "--for", "300s"])?;
        let covered = opened["devices"]["covered"].as_array();
        let names: Vec<_> = covered.into_iter().flatten().map(|d| &d["name"]).collect();
        ensure!(names.iter().any(|name| *name == "foreign"), "{opened}");
        ensure!(names.iter().any(|name| *name == "lo"), "{opened}");
    }
    tool.expect(exit::CONFIRMED, &["grace", "--vip", VIP, "--end"])?;
    let left = tc(&["qdisc", "show"])?;
    let clsact: Vec<_> = left
        .lines()
        .filter(|line| line.contains("clsact"))
        .collect();
    ensure!(
        clsact.len() == 1 && clsact[0].contains("dev foreign"),
        "{left}"
    );
    let filters = tc(&["filter", "show", "dev", "foreign", "ingress"])?;
    ensure!(filters.trim().is_empty(), "{filters}");
    Ok(End::Pass)
}

fn leftovers(context: &Context) -> Result<End> {
    let lab = Lab::up(&[VIP], 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let open = ["grace", "--vip", VIP, "--for", "300s"];
    tool.expect(exit::CONFIRMED, &open)?;

    let namespace = one_in(Path::new(PINS), "")?;
    let version = one_in(&namespace, "v")?;
    fs::remove_dir(one_in(&version, "ready-")?)?;
    let again = tool.json(exit::CONFIRMED, &open)?;
    ensure!(again["windows"][0]["open"] == true, "{again}");
    one_in(&version, "ready-")?;

    // A version that never was, and a network namespace that is gone.
    fs::create_dir_all(namespace.join("v0/maps"))?;
    fs::create_dir_all(Path::new(PINS).join("18446744073709551615/v1/progs"))?;
    let cleaned = tool.json(exit::CONFIRMED, &["cleanup"])?;
    ensure!(cleaned["gate"].as_u64() > Some(0), "{cleaned}");
    ensure!(!fs::exists(PINS)?, "{PINS} is still there");
    let left = tool.expect(exit::CONFIRMED, &["cleanup"])?;
    ensure!(left.stdout.contains("nothing"), "{}", left.stdout);
    Ok(End::Pass)
}

/// The only entry that begins so.
fn one_in(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    ensure!(
        found.len() == 1,
        "{prefix}* in {}: {found:?}",
        folder.display()
    );
    Ok(found.remove(0))
}
