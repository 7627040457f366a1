//! VIPs that are servers of their own move between two nodes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::{Context, End, Scenario};
use super::{Asks, Own, Users, VERSIONS, killed, same, started};
use crate::cluster::Cluster;
use crate::cluster::agent::AGENT;
use crate::guest::command::run;
use crate::guest::node::TestNode;
use crate::guest::tool::exit;

pub const ON_A_CLUSTER: &[Scenario] = &[
    Scenario {
        name: "two-nodes-own-server",
        claim: "a VIP that is a server of its own moves to another node and back: its clients of \
            NFSv3, 4.0, 4.1 and 4.2 keep their locks, and clients of the other notice nothing",
        run: moves,
        only_full: Some("grace may last its full time"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "two-nodes-own-server-killed",
        claim: "a move of a VIP that is a server of its own, killed at any step on either node, \
            completes when it is run again, and no client loses a lock",
        run: killed::between_nodes,
        only_full: Some("seven moves"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "two-nodes-own-server-crash",
        claim: "the node of a VIP that is a server of its own dies: another node refuses to start it \
            until it is told that the node is fenced; then clients of NFSv3, 4.0, 4.1 and 4.2 reclaim \
            their locks by the records on its storage, and the result is not confirmed",
        run: crash,
        only_full: Some("grace lasts its full time"),
        ..Scenario::DEFAULT
    },
];

fn moves(context: &Context) -> Result<End> {
    let (cluster, mail, data) = two_on_a_cluster(&context.nlmfo)?;
    for own in [&mail, &data] {
        own.start(&cluster.a.tool())?;
    }
    same::on_both(context, &cluster)?;
    let users = Users::start(&TestNode::root(), &mail, &data, &VERSIONS, Asks::OfItsOwn)?;
    for (from, to, host) in [
        (&cluster.a, &cluster.b, "10.77.2.2"),
        (&cluster.b, &cluster.a, "10.77.2.1"),
    ] {
        let command = failover_to(&context.nlmfo, host)?;
        let mut command: Vec<&str> = command.iter().map(String::as_str).collect();
        command.push("--json");
        let moved = started(&from.tool(), &command, "/start")?;
        ensure!(
            moved["start"]["reclaim"]["expected"].as_u64() >= Some(3),
            "{moved}"
        );
        eprintln!(
            "{} to {}: stop {} ms, start {} ms, of which reclaims {} ms; stood still at most {} ms; \
             missing {}; given up {}",
            from.name(),
            to.name(),
            moved["stop"]["took_ms"],
            moved["start"]["took_ms"],
            moved["start"]["reclaim"]["back_after_ms"],
            moved["stood_still_ms"],
            moved["start"]["reclaim"]["missing"],
            moved["start"]["reclaim"]["given_up"],
        );
        let serving = mail.status(&to.tool())?;
        ensure!(serving["state"] == "serving", "{serving}");
        let other = data.status(&cluster.a.tool())?;
        ensure!(
            other["grace"]["nfsd"] == false && other["grace"]["lockd"] == false,
            "{other}"
        );
    }
    users.finish_quick()?;
    for own in [&mail, &data] {
        own.stop(&cluster.a.tool())?;
    }
    Ok(End::Pass)
}

/// The arguments that move the mail server to this host.
pub(crate) fn failover_to(nlmfo: &Path, host: &str) -> Result<Vec<String>> {
    let rsh = format!("{AGENT} rsh");
    let nlmfo = nlmfo.to_str().context("no UTF-8")?;
    let words = [
        "failover",
        "--vip",
        "10.77.0.1",
        "--to",
        host,
        "--rsh",
        &rsh,
        "--remote-nlmfo",
        nlmfo,
    ];
    Ok(words.map(String::from).into())
}

/// Two servers that either node can start, with empty filesystems.
pub(crate) fn two_on_a_cluster(nlmfo: &Path) -> Result<(Cluster, Own, Own)> {
    let link = "{ kind = \"macvlan\", parent = \"eth0\" }";
    on_a_cluster(nlmfo, |number, name, device| {
        Own::describe(number, name, device, link)
    })
}

/// The same, as `describe` has them from number, name and device.
pub fn on_a_cluster(
    nlmfo: &Path,
    describe: impl Fn(u8, &'static str, &str) -> Result<(Own, String)>,
) -> Result<(Cluster, Own, Own)> {
    let cluster = Cluster::up(nlmfo, &[])?;
    run(Command::new("modprobe").arg("nfsv4"))?;
    let (mail, first) = describe(1, "mail", "/dev/vda")?;
    let (data, second) = describe(2, "data", "/dev/vdb")?;
    let text = [first, second].concat();
    for node in [&cluster.a, &cluster.b] {
        node.node().write("/etc/nlmfo.toml", &text)?;
        node.shell("touch /etc/exports; modprobe -a macvlan ext4; echo 40 >/proc/sys/fs/nfs/nlm_grace_period")?;
    }
    // Clients' root is nobody, unless the export says otherwise.
    (cluster.a).shell(
        "for disk in vda vdb; do mkfs.ext4 -q -F -E root_owner=65534:65534 /dev/$disk; done",
    )?;
    Ok((cluster, mail, data))
}

fn crash(context: &Context) -> Result<End> {
    let (cluster, mail, data) = two_on_a_cluster(&context.nlmfo)?;
    let (a, b) = (&cluster.a, &cluster.b);
    // Without a record, nobody knows what clients have locked behind delegations.
    for node in [a, b] {
        node.shell("echo 0 >/proc/sys/fs/leases-enable")?;
    }
    mail.start(&a.tool())?;
    data.start(&b.tool())?;
    let users = Users::start(&TestNode::root(), &mail, &data, &VERSIONS, Asks::OfItsOwn)?;
    a.kill()?;

    let takeover = ["failover", "--vip", "10.77.0.1", "--phase", "takeover"];
    for refused in [&["server", "start", "mail"][..], &takeover] {
        let refused = b.tool().expect(exit::UNSUPPORTED, refused)?;
        let is_told = |what| refused.stderr.contains(what);
        ensure!(
            is_told("node a ") && is_told("--after-fencing"),
            "{}",
            refused.stderr
        );
        ensure!(mail.status(&b.tool())?["state"] == "stopped");
    }
    // A mount would have replayed the journal.
    b.shell("dumpe2fs -h /dev/vda 2>/dev/null | grep needs_recovery")?;
    let takeover = [&takeover[..], &["--after-fencing"]].concat();
    let taken = b.tool().json(exit::NOT_CONFIRMED, &takeover)?;
    let reclaim = &taken["reclaim"];
    ensure!(
        taken["crashed"] == true
            && taken["disturbed"] == Value::Array(vec![])
            && reclaim["has_record"] == false
            && reclaim["grace"]["nfsd"] == true
            && reclaim["grace"]["lockd"] == true
            && reclaim["ended"] == "by_itself",
        "{taken}"
    );
    eprintln!("taken over after {} ms", taken["took_ms"]);
    users.finish_quick()?;
    // Its clients hold nothing any more.
    for own in [&mail, &data] {
        own.stop(&b.tool())?;
    }
    Ok(End::Pass)
}
