//! What a failover needs of a node's services: where lockd listens, whoever answers for
//! it, and what is found out before anything is done.

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::observe::lockd_ports::{LockdPort, LockdPorts};

use super::{Context, End, Machine, Scenario};
use crate::guest::command::run;
use crate::guest::daemons::{cold_rpcbind, crash, register};
use crate::guest::gated::open;
use crate::guest::locker::Mode;
use crate::guest::place::Place;
use crate::guest::tool::{Tool, exit};
use crate::guest::wired::{GRANTED, OTHER, REFUSED, VIP, VIP6, Wired};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "ready-ports",
    claim: "grace and fence stand, and NFS is left alone, with rpcbind dead, cold and lying, \
            and on fixed ports; none is opened where lockd does not listen",
    run: ports,
    machine: Machine::Own("it kills the server's rpcbind"),
    ..Scenario::DEFAULT
}];

/// Every port is one that the kernel listens on, by its own list of sockets.
fn ensure_listening(ports: &LockdPorts) -> Result<()> {
    for port in ports.ports() {
        let (file, state) = match (port.transport, port.ipv6) {
            (Transport::Tcp, false) => ("tcp", "0A"),
            (Transport::Tcp, true) => ("tcp6", "0A"),
            (Transport::Udp, false) => ("udp", "07"),
            (Transport::Udp, true) => ("udp6", "07"),
        };
        let table = fs::read_to_string(format!("/proc/net/{file}"))?;
        let listens = table.lines().any(|line| {
            let mut fields = line.split_ascii_whitespace().skip(1);
            let local = fields.next().unwrap_or_default();
            let found = fields.nth(1).unwrap_or_default();
            local.ends_with(&format!(":{:04X}", port.port)) && found == state
        });
        ensure!(listens, "{port:?} is not in /proc/net/{file}:\n{table}");
    }
    Ok(())
}

/// A new lock is refused and a reclaim granted, over both transports and families, and
/// NFS through the VIP goes on.
fn ensure_in_grace(wired: &mut Wired, when: &str) -> Result<()> {
    for index in [0, 2] {
        let vip = wired.lab.vips[index];
        for (reclaim, expected) in [(false, REFUSED), (true, GRANTED)] {
            let (caller, mut stream) = wired.stream(vip, NlmVersion::V4)?;
            let answer = wired.ask(&caller, &mut stream, reclaim)?;
            ensure!(
                answer == expected,
                "{when}: to {vip} over tcp, reclaim {reclaim}: {answer:?}"
            );
        }
        wired.exchange_datagrams((index / 2, NlmVersion::V4))?;
    }
    (wired.net.file(&wired.lab.server, wired.lab.vips[0], when)).context("NFS through the VIP")?;
    Ok(())
}

fn ports(context: &Context) -> Result<End> {
    let root = Place::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;

    // What lockd registered itself, before anybody else had a word.
    let found = LockdPorts::look_up()?;
    ensure_listening(&found)?;
    ensure!(found.ports().len() == 4, "{found:?}");
    for (vip, transport) in [
        (0, Transport::Tcp),
        (0, Transport::Udp),
        (2, Transport::Tcp),
        (2, Transport::Udp),
    ] {
        let vip = wired.lab.vips[vip];
        for version in [NlmVersion::V1, NlmVersion::V3, NlmVersion::V4] {
            let registered = wired.net.lockd(vip, version, transport)?.port();
            let port = found.port(vip, version, transport);
            ensure!(
                port == Some(registered),
                "{vip} {version} {transport}: {port:?}, registered: {registered}"
            );
        }
    }
    let elsewhere = Place::create("nobody")?;
    let there = elsewhere.within(|| Ok(LockdPorts::look_up()?))?;
    ensure!(there.is_empty(), "in another namespace: {there:?}");

    crash("rpcbind")?;
    let vips = [VIP, VIP6];
    open(&tool, &vips)?;
    ensure_in_grace(&mut wired, "rpcbind-dead")?;
    tool.expect(exit::CONFIRMED, &["grace", "--end", "--vip", VIP, "--vip", VIP6])?;

    cold_rpcbind()?;
    let nfs = |family: &str| format!("{family}.8.1");
    register(100_021, 99, "tcp", &nfs("0.0.0.0"))?;
    register(100_021, 4, "tcp6", &nfs("::"))?;
    open(&tool, &vips)?;
    ensure_in_grace(&mut wired, "rpcbind-lies")?;
    tool.expect(exit::CONFIRMED, &["grace", "--end", "--vip", VIP, "--vip", VIP6])?;

    let held = wired.range();
    let file = wired.file.clone();
    // Not monitored: the statd that rpcbind has forgotten cannot be asked.
    let mut holder = wired.patient(wired.lab.vips[0])?;
    holder.granted(|raw| raw.nm_lock(&file, 7, held, Mode::Write))?;
    let release = ["failover", "--phase", "release", "--vip", VIP];
    let report = tool.json(exit::CONFIRMED, &release)?;
    ensure!(report["fenced"][0] == VIP, "{report}");
    holder.set_patience(Duration::from_secs(2));
    let answer = holder.nm_lock(&file, 7, held, Mode::Write);
    ensure!(answer.is_err(), "through the fence: {answer:?}");
    let mut other = wired.patient(wired.lab.vips[1])?;
    other.granted(|raw| raw.nm_lock(&file, 7, held, Mode::Write))?;
    (wired.net.file(&wired.lab.server, wired.lab.vips[0], "fenced"))
        .context("NFS through the fenced VIP")?;
    tool.expect(exit::CONFIRMED, &["cleanup"])?;

    wired.lab.server.stop_nfsd()?;
    let refused = tool.expect(exit::LACKING, &["grace", "--vip", OTHER, "--for", "9s"])?;
    ensure!(
        refused.stderr.contains("lockd listens on no port")
            && refused.stderr.contains("start the NFS server"),
        "{}",
        refused.stderr
    );
    for (file, port) in [("nlm_tcpport", "4045"), ("nlm_udpport", "4047")] {
        root.write(&format!("/proc/sys/fs/nfs/{file}"), port)?;
    }
    run(root.command("rpc.nfsd").args(["--tcp", "--udp", "4"]))?;
    let fixed: BTreeSet<LockdPort> = LockdPorts::look_up()?.ports().iter().copied().collect();
    let expected = [(Transport::Tcp, 4045), (Transport::Udp, 4047)];
    let expected: BTreeSet<LockdPort> = (expected.into_iter())
        .flat_map(|(transport, port)| {
            [false, true].map(|ipv6| LockdPort {
                transport,
                ipv6,
                port,
            })
        })
        .collect();
    ensure!(fixed == expected, "{fixed:?} on fixed ports {expected:?}");
    Ok(End::Pass)
}
