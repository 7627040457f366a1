//! FREE_ALL in a client's name, and the detour that it uses, without the rest of the tool: one lockd
//! host is released at a time, whether its VIP is still on the server or not.

use std::collections::BTreeSet;
use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nlmfo::kernel::netns;
use nlmfo::observe::host::{Host, NlmVersion, Transport};
use nlmfo::release::free_all::FreeAll;
use nlmfo::release::route::{self, Detour};
use nlmfo::release::target::{Request, RequestKind};
use nlmfo::release::{Job, Method, Target, Turn};
use nlmfo::rpc::nlm;
use tokio::runtime::{Builder, Runtime};

use super::{Context, End, Kernels, Scenario};
use crate::guest::command::run;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::raw::{self, RawClient, RawNet};
use crate::guest::server::BRIDGE;
use crate::guest::traces::Traces;
use crate::guest::wait::{Seen, until};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "free-all-exact",
        claim: "a call in a client's name releases that client, version and transport alone",
        run: |_| one_at_a_time(Beforehand::Nothing),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "free-all-vip-gone",
        claim: "the same for VIPs that have been taken off the server",
        run: |_| one_at_a_time(Beforehand::RemoveVips),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "free-all-unexported",
        claim: "the same for clients that no export covers any more; none stays admitted",
        run: |_| one_at_a_time(Beforehand::Unexport),
        kernels: Kernels::One(
            "who is admitted is decided by mountd; free-all-exact makes the calls on every kernel",
        ),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "detour-foreign",
        claim: "while calls go to a VIP that is gone, the server does not answer ARP for it",
        run: foreign_to_arp,
        kernels: Kernels::One("free-all-vip-gone takes the detour on every kernel"),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "detour-leftovers",
        claim: "what a killed detour leaves behind is found and removed",
        run: leftovers,
        kernels: Kernels::One("free-all-vip-gone takes the detour on every kernel"),
        ..Scenario::DEFAULT
    },
];

const VIPS: [&str; 2] = ["10.77.0.1", "fd77::1"];
const SVID: u32 = 7;

/// What an operator may have done before the locks are released.
enum Beforehand {
    Nothing,
    RemoveVips,
    Unexport,
}

impl Beforehand {
    /// An UNLOCK, which v1 needs, opens the file: it cannot go after the export.
    fn versions(&self) -> &'static [NlmVersion] {
        match self {
            Beforehand::Unexport => &[NlmVersion::V3, NlmVersion::V4],
            _ => &[NlmVersion::V1, NlmVersion::V3, NlmVersion::V4],
        }
    }
}

/// A lock of one raw client, and what it takes to release it.
struct Held {
    target: Target,
    range: Range,
    /// Its socket stays open, as a real client's does.
    _client: RawClient,
}

fn one_at_a_time(beforehand: Beforehand) -> Result<End> {
    let lab = Lab::up(&VIPS, 0)?;
    let net = RawNet::join(&lab.server)?;
    let own = netns::network()?.inode as u32;
    let mut held = Vec::new();
    for vip in &lab.vips {
        let file = net
            .files(&lab.server, *vip, &["locked".into()])?
            .pop()
            .context("one file was asked for")?;
        for version in beforehand.versions() {
            for transport in [Transport::Tcp, Transport::Udp] {
                let number = held.len() as u16 + 1;
                let range = Range::new(10 * u64::from(number), 5);
                let mut client = net.client(number, *vip, *version, transport)?;
                client.granted(|raw| raw.lock(&file, SVID, range, Mode::Write))?;
                let target = Target {
                    host: Host {
                        vip: *vip,
                        client: raw::address(number, *vip),
                        version: *version,
                        transport,
                        netns: own,
                    },
                    caller: format!("raw{number}").into(),
                    monitored: None,
                    waiting: Vec::new(),
                    held: vec![Request {
                        file_handle: client.handle(&file),
                        svid: SVID,
                        kind: RequestKind::Held {
                            range: nlm::Range::WHOLE_FILE,
                        },
                    }],
                };
                held.push(Held {
                    target,
                    range,
                    _client: client,
                });
            }
        }
    }
    let server = lab.server.node();
    match beforehand {
        Beforehand::Nothing => {}
        Beforehand::RemoveVips => {
            for vip in &lab.vips {
                lab.server.remove_vip(*vip)?;
            }
        }
        Beforehand::Unexport => {
            run(server.command("exportfs").arg("-ua"))?;
            run(server.command("exportfs").arg("-f"))?;
        }
    }

    let before = Traces::of(server)?;
    let runtime = runtime()?;
    let turn = &runtime.block_on(Turn::take(Duration::ZERO))?;
    while let Some(Held { target, .. }) = held.pop() {
        let job = Job {
            vip: target.host.vip,
            netns: own,
            targets: std::slice::from_ref(&target),
            elsewhere: &BTreeSet::new(),
            filesystems: &[],
            turn,
            deadline: Duration::from_mins(1),
        };
        let report = runtime.block_on(FreeAll.release(&job))?;
        if let Some(failure) = report.failures().next() {
            return Err(anyhow::anyhow!("{}: {:?}", failure.host, failure.outcome));
        }
        let left: Vec<_> = held.iter().map(|held| held.range.start).collect();
        let seen: Vec<_> = lab.server.locks()?.iter().map(|lock| lock.start).collect();
        ensure!(
            seen == left,
            "after the release of {}: locks at {left:?} expected, the server has {seen:?}",
            target.host
        );
    }
    Traces::of(server)?.ensure_as(&before)?;
    let admitted = server.read("/proc/net/rpc/auth.unix.ip/content")?;
    // The kernel puts a # before what is no longer valid.
    let valid = |line: &&str| !line.starts_with('#');
    let ours = admitted
        .lines()
        .filter(valid)
        .find(|line| line.contains("nlmfo"));
    ensure!(ours.is_none(), "still admitted: {admitted}");
    Ok(End::Pass)
}

fn foreign_to_arp(_: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS[..1], 0)?;
    let net = RawNet::join(&lab.server)?;
    let vip = lab.vips[0];
    let state = neighbour_state(&net, vip)?;
    ensure!(
        state != "FAILED",
        "the VIP is there, and ARP for it is {state}"
    );

    lab.server.remove_vip(vip)?;
    run(net.node().command("ip").args(["neigh", "flush", "all"]))?;
    let runtime = runtime()?;
    // Not the neighbour itself: packets of the detour's own clients are dropped.
    let clients = BTreeSet::from([raw::address(1, vip)]);
    let turn = runtime.block_on(Turn::take(Duration::ZERO))?;
    let detour = runtime.block_on(Detour::open(&turn, vip, &clients))?;
    let state = neighbour_state(&net, vip)?;
    runtime.block_on(detour.close())?;
    ensure!(
        state == "FAILED",
        "ARP for a VIP that is gone is answered: {state}"
    );
    Ok(End::Pass)
}

/// What the raw clients' namespace makes of its ARP requests for `vip`.
fn neighbour_state(net: &RawNet, vip: IpAddr) -> Result<String> {
    net.node().within(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.send_to(b"who has it?", (vip, 9))?;
        Ok(())
    })?;
    until("an answer to ARP, or none", || {
        let shown = run(net
            .node()
            .command("ip")
            .args(["neigh", "show", &vip.to_string()]))?;
        let state = shown.split_whitespace().next_back().unwrap_or_default();
        Ok(match state {
            "" | "INCOMPLETE" => Seen::No(shown),
            state => Seen::Yes(state.to_owned()),
        })
    })
}

fn leftovers(_: &Context) -> Result<End> {
    let lab = Lab::up(&VIPS, 0)?;
    for vip in &lab.vips {
        lab.server.remove_vip(*vip)?;
    }
    let before = Traces::of(lab.server.node())?;
    let runtime = runtime()?;
    let turn = runtime.block_on(Turn::take(Duration::ZERO))?;
    for vip in &lab.vips {
        let clients = BTreeSet::from([raw::address(1, *vip), raw::address(2, *vip)]);
        // A process that is killed runs no destructor either.
        std::mem::forget(runtime.block_on(Detour::open(&turn, *vip, &clients))?);
        let left = Traces::of(lab.server.node())?;
        ensure!(left != before, "no detour for {vip}");

        let removed = runtime.block_on(route::cleanup())?;
        let counts = (removed.rules, removed.routes, removed.devices);
        ensure!(counts == (2, 3, 1), "removed for {vip}: {removed:?}");
        Traces::of(lab.server.node())?.ensure_as(&before)?;
        let devices = run(lab.server.node().command("ip").args(["-br", "link"]))?;
        ensure!(
            devices.contains(BRIDGE) && !devices.contains("nlmfo"),
            "devices afterwards: {devices}"
        );
    }
    let removed = runtime.block_on(route::cleanup())?;
    ensure!(
        removed.is_nothing(),
        "removed from a clean node: {removed:?}"
    );
    Ok(End::Pass)
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}
