//! Notifies a VIP's clients, and no others, that their server has moved.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::Transport;
use serde_json::Value;

use super::{Context, End, Kernels, Scenario};
use crate::guest::client::Client;
use crate::guest::command::run;
use crate::guest::lab::Lab;
use crate::guest::listeners::Listeners;
use crate::guest::locker::{Mode, Range};
use crate::guest::proc_locks::PosixLock;
use crate::guest::raw::{self, RawNet};
use crate::guest::tool::{Tool, exit};
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "notify-reclaim",
        claim: "a VIP's clients, notified over IPv4 and IPv6, reclaim; another VIP's client is not notified",
        run: reclaim,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "notify-dead",
        claim: "a client that is down or has no statd is reported in time and delays no other client",
        run: dead,
        kernels: Kernels::One("nlmfo sends SM_NOTIFY: it does not depend on the kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "notify-many",
        claim: "a thousand clients are notified at once",
        run: many,
        kernels: Kernels::One("nlmfo sends SM_NOTIFY: it does not depend on the kernel"),
        ..Scenario::DEFAULT
    },
];

const VIPS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];
const VIP_V6: &str = "fd77::1";
/// An address on the clients' link that no host has.
const DEAD: &str = "10.77.9.9";

fn reclaim(context: &Context) -> Result<End> {
    let lab = Lab::up(&[VIPS[0], VIP_V6], 2)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let other_vip: IpAddr = VIPS[1].parse()?;
    lab.server.add_vip(other_vip)?;
    let other = Client::join(&lab.server, 3)?;
    let other_mount = other.mount(&lab.server, other_vip, Transport::Tcp)?;
    let mut held = vec![other.lock(&other_mount, "other", Range::WHOLE, Mode::Write)?];
    for mounted in &lab.clients {
        let name = mounted.client.node().name();
        for (mount, family) in mounted.mounts.iter().zip(["v4", "v6"]) {
            let file = format!("{name}-{family}");
            held.push((mounted.client).lock(mount, &file, Range::new(3, 9), Mode::Write)?);
        }
    }
    let before = lab.server.locks()?;
    let heard = udp_heard(&other)?;
    let mut states = BTreeSet::new();
    for vip in [VIPS[0], VIP_V6] {
        release(&tool, vip)?;
        ensure!(lab.server.locks()?.len() == 3, "{vip} was not released");
        let report = notify(&tool, exit::CONFIRMED, vip, &["--record", RECORD])?;
        ensure!(
            outcomes(&report)? == ["notified", "notified"] && report["names"][0]["name"] == vip,
            "{report}"
        );
        let state = report["state"].as_u64().context("a state number")?;
        ensure!(
            state % 2 == 1 && states.last() < Some(&state),
            "{states:?} then {report}"
        );
        states.insert(state);
        all_back(&lab, &before)?;
    }
    let still = udp_heard(&other)?;
    ensure!(
        heard == still,
        "another VIP's client was spoken to: {heard:?}, then {still:?}"
    );
    Ok(End::Pass)
}

fn dead(context: &Context) -> Result<End> {
    let (lab, _held) = Lab::with_one_lock()?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    // Its addresses are there, and nothing listens at them.
    let _net = RawNet::join(&lab.server)?;
    let (vip, alive) = (lab.vips[0], &lab.clients[0].client);
    let (alive, closed) = (
        alive.address_for(vip).to_string(),
        raw::address(1, vip).to_string(),
    );
    let before = lab.server.locks()?;
    release(&tool, VIPS[0])?;
    let clients = [
        "--client",
        DEAD,
        "--client",
        &closed,
        "--client",
        &alive,
        "--deadline",
        "6s",
    ];
    let report = notify(&tool, exit::INCOMPLETE, VIPS[0], &clients)?;
    let took = report["took_ms"].as_f64().context("a time")?;
    ensure!(
        (6_000.0..9_000.0).contains(&took),
        "a deadline of 6 s: {report}"
    );
    for (client, outcome) in [
        (DEAD, "unreachable"),
        (&closed, "no statd"),
        (&alive, "notified"),
    ] {
        let told = client_report(&report, client)?;
        ensure!(told["outcome"] == outcome, "{client}: {told}");
    }
    let told_at = client_report(&report, &alive)?["told_ms"].as_f64();
    ensure!(
        told_at.is_some_and(|at| at < 4_000.0),
        "told late: {report}"
    );
    all_back(&lab, &before)?;

    lab.server.remove_vip(vip)?;
    let gone = tool.expect(
        exit::COULD_NOT_RUN,
        &["notify", "--vip", VIPS[0], "--client", &alive],
    )?;
    ensure!(
        gone.stderr.contains("not an address of this node"),
        "{}",
        gone.stderr
    );
    Ok(End::Pass)
}

fn many(context: &Context) -> Result<End> {
    const CLIENTS: u16 = 1000;
    let lab = Lab::up(&[VIPS[0]], 0)?;
    let tool = Tool::new(&context.nlmfo, lab.server.node());
    let net = RawNet::join(&lab.server)?;
    let vip = lab.vips[0];
    let addresses = (0..CLIENTS).map(|n| raw::address(n, vip));
    let listeners = Listeners::start(net.node(), addresses, |_| {})?;
    let clients: Vec<String> = (0..CLIENTS)
        .map(|n| raw::address(n, vip).to_string())
        .collect();
    let mut options = vec!["--name", "nfs1"];
    options.extend(
        clients
            .iter()
            .flat_map(|client| ["--client", client.as_str()]),
    );
    let report = notify(&tool, exit::CONFIRMED, VIPS[0], &options)?;
    ensure!(
        outcomes(&report)?.len() == usize::from(CLIENTS),
        "{}",
        report["clients"]
    );
    let (heard, took) = (
        listeners.notified(),
        report["took_ms"].as_f64().context("a time")?,
    );
    ensure!(
        heard >= usize::from(CLIENTS),
        "{heard} SM_NOTIFYs were heard"
    );
    let sent: u64 = report["clients"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|c| c["sent"].as_u64())
        .sum();
    eprintln!("{CLIENTS} clients told in {took:.0} ms with {sent} datagrams");
    ensure!(took < 30_000.0, "{took} ms");
    Ok(End::Pass)
}

const RECORD: &str = "/tmp/record.json";

/// Takes a VIP's locks away, with a record, and holds grace for it.
fn release(tool: &Tool<'_>, vip: &str) -> Result<()> {
    let release = ["failover", "--phase", "release", "--vip", vip, "--no-fence"];
    tool.expect(
        exit::CONFIRMED,
        &[&release[..], &["--record", RECORD]].concat(),
    )?;
    tool.expect(exit::CONFIRMED, &["grace", "--vip", vip, "--for", "300s"])?;
    Ok(())
}

fn notify(tool: &Tool<'_>, code: i32, vip: &str, options: &[&str]) -> Result<Value> {
    tool.json(code, &[&["notify", "--vip", vip][..], options].concat())
}

/// The result of each client.
fn outcomes(report: &Value) -> Result<Vec<&str>> {
    let clients = report["clients"].as_array().context("no clients")?;
    clients
        .iter()
        .map(|client| client["outcome"].as_str().context("no outcome"))
        .collect()
}

fn client_report<'a>(report: &'a Value, client: &str) -> Result<&'a Value> {
    let mut clients = report["clients"].as_array().into_iter().flatten();
    let found = clients.find(|told| told["client"] == client);
    found.with_context(|| format!("{client} is not in {report}"))
}

fn all_back(lab: &Lab, before: &[PosixLock]) -> Result<()> {
    until("the locks to be back", || {
        let now = lab.server.locks()?;
        Ok(match before.iter().all(|lock| now.contains(lock)) {
            true => Seen::Yes(()),
            false => Seen::No(format!("{now:?} of {before:?}")),
        })
    })
}

/// UDP datagrams that have come to a client, whether or not somebody listened.
fn udp_heard(client: &Client) -> Result<Vec<u64>> {
    let mut counts = Vec::new();
    let text = run(client.node().command("cat").args(["/proc/net/snmp"]))?;
    let line = text.lines().rfind(|line| line.starts_with("Udp: "));
    let numbers = line
        .context("no line of UDP in /proc/net/snmp")?
        .split_whitespace();
    // InDatagrams and NoPorts.
    for number in numbers.skip(1).take(2) {
        counts.push(number.parse()?);
    }
    let text = run(client.node().command("cat").args(["/proc/net/snmp6"]))?;
    for name in ["Udp6InDatagrams", "Udp6NoPorts"] {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        counts.push(line.with_context(|| format!("no {name}"))?.trim().parse()?);
    }
    Ok(counts)
}
