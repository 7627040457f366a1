//! The guard at lockd's sockets, and bytes that TCP discards: what lockd gets was decided
//! on, whatever brought it there.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nlmfo::grace::{Gate, window as moment};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo_common::gate::{Audited, Gated, Window};

use super::{Context, End, Scenario};
use crate::guest::command::run;
use crate::guest::crafted::{self, Flaw, Wire};
use crate::guest::gated::{ensure_answers, filters_on, kill_all, open, window};
use crate::guest::node::TestNode;
use crate::guest::tool::Tool;
use crate::guest::wait::{Seen, until};
use crate::guest::wire::{Ask, Caller, Datagrams, Stream};
use crate::guest::wired::{GRANTED, OTHER, REFUSED, VIP, Wired};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "guard-ways-in",
        claim: "packets that reach lockd past the gate are dropped in a window and in a fence, over \
                TCP and UDP; other addresses are not affected",
        run: ways_in,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "guard-discarded",
        claim: "a call that overlaps bytes which TCP discarded is answered as in grace",
        run: discarded,
        ..Scenario::DEFAULT
    },
];

const NEW: Ask = Ask::NmLock { reclaim: false };
const RECLAIM: Ask = Ask::NmLock { reclaim: true };

/// Record marker of a call over TCP.
const MARKER: usize = 4;

/// Of the first client of the raw network, whose frames are made by hand.
const CRAFTED: Ipv4Addr = Ipv4Addr::new(10, 78, 99, 1);
const CRAFTED_PORT: u16 = 911;

/// What the gate and the audit have counted. `nlmfo grace --list` would start another
/// keeper, and that one puts the gate on all devices.
pub fn counts(vip: IpAddr) -> Result<(Gated, Audited)> {
    let gate = Gate::in_force()?.context("the gate is gone")?;
    Ok((gate.maps.gated(vip.into())?, gate.maps.audited(vip.into())?))
}

/// Does something, and waits until the guard has dropped that many packets more.
fn ensure_guarded(
    wired: &Wired,
    what: &str,
    packets: u64,
    act: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let vip = wired.lab.vips[0];
    let (before, _) = counts(vip)?;
    act().with_context(|| what.to_owned())?;
    until(&format!("the guard: {what}"), || {
        let (now, audited) = counts(vip)?;
        if audited.violations > 0 {
            bail!("{what}: granted: {audited:?}");
        }
        Ok(match now.guarded >= before.guarded + packets {
            true => Seen::Yes(()),
            false => Seen::No(format!("{now:?} after {before:?}, {audited:?}")),
        })
    })?;
    wired.ensure_held().with_context(|| what.to_owned())
}

/// lockd again, its sockets made in a cgroup that is gone by now, as with a service that
/// has started nfsd and ended.
fn restart_in_a_cgroup(wired: &mut Wired) -> Result<()> {
    let script = "mkdir -p /run/cgroup && mount -t cgroup2 none /run/cgroup && \
                  mkdir /run/cgroup/nfs && echo $$ > /run/cgroup/nfs/cgroup.procs && \
                  rpc.nfsd --tcp --udp 4 && echo $$ > /run/cgroup/cgroup.procs && \
                  rmdir /run/cgroup/nfs && umount /run/cgroup";
    wired.lab.server.stop_nfsd()?;
    run(TestNode::root().command("sh").args(["-ec", script]))?;
    wired.lab.server.end_grace()?;
    wired.net.look_up_ports(&wired.lab.server)
}

/// A network of its own on a device that appears now.
fn late_network() -> Result<TestNode> {
    let late = TestNode::create("late")?;
    TestNode::root().ip(&format!(
        "link add vlate type veth peer name eth0 netns {pid}\n\
         link set vlate up\n\
         addr add 10.79.0.254/24 dev vlate\n\
         link add link vlate name vlate.5 type vlan id 5\n\
         link set vlate.5 up\n\
         addr add 10.81.0.254/24 dev vlate.5\n",
        pid = late.pid()
    ))?;
    late.ip(&format!(
        "link set eth0 up\n\
         addr add 10.79.0.1/24 dev eth0\n\
         link add link eth0 name eth0.5 type vlan id 5\n\
         link set eth0.5 up\n\
         addr add 10.81.0.1/24 dev eth0.5\n\
         route add {VIP} via 10.79.0.254\n\
         route add {OTHER} via 10.79.0.254\n"
    ))?;
    Ok(late)
}

fn ways_in(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    restart_in_a_cgroup(&mut wired)?;
    let IpAddr::V4(vip) = wired.lab.vips[0] else {
        bail!("{VIP} is an IPv4 address");
    };
    let udp = wired
        .net
        .lockd(vip.into(), NlmVersion::V4, Transport::Udp)?;
    let tcp = wired
        .net
        .lockd(vip.into(), NlmVersion::V4, Transport::Tcp)?;
    let caller = Caller::new("late", NlmVersion::V4);
    open(&tool, &[VIP])?;
    kill_all()?;

    // A device that nobody puts the gate on.
    let late = late_network()?;
    let ensure_dropped = |wired: &mut Wired, state: &str| -> Result<()> {
        for ask in [NEW, RECLAIM] {
            let range = wired.range();
            let call = caller.call(ask, &wired.file, range)?;
            ensure_guarded(wired, &format!("{state}, UDP, {ask:?}"), 1, || {
                Datagrams::connect(&late, None, udp)?.send(&call)
            })?;
            // Its retransmissions too, as long as the connection is there.
            let mut stream = Stream::connect(&late, None, tcp)?;
            ensure_guarded(wired, &format!("{state}, TCP, {ask:?}"), 2, || {
                stream.send(&call.record)
            })?;
        }
        Ok(())
    };
    ensure_dropped(&mut wired, "in a window")?;
    ensure!(filters_on("vlate")? == 0, "the gate is on vlate");
    // Another address goes on.
    let other = wired
        .net
        .lockd(wired.lab.vips[1], NlmVersion::V4, Transport::Udp)?;
    let range = wired.range();
    let answer =
        Datagrams::connect(&late, None, other)?.ask(&caller.call(NEW, &wired.file, range)?)?;
    ensure!(answer == GRANTED, "through {OTHER}: {answer:?}");
    wired.held.insert(range.start);

    // Frames with tags of no VLAN: the gate reads behind two, the guard behind all.
    let wire = Wire::new(wired.net.node(), "br0")?;
    let packet = |wired: &mut Wired, to_port: u16| -> Result<Vec<u8>> {
        let range = wired.range();
        let call = caller.call(NEW, &wired.file, range)?;
        let datagram = crafted::udp(CRAFTED_PORT, to_port, &call.record[MARKER..])?;
        crafted::ipv4(crafted::UDP, CRAFTED, vip, &datagram)
    };
    for tags in 0..5 {
        let packet = packet(&mut wired, udp.port())?;
        let (_, before) = counts(vip.into())?;
        if tags > 2 {
            ensure_guarded(&wired, &format!("{tags} tags"), 1, || {
                wire.send(tags, &packet)
            })?;
            continue;
        }
        wire.send(tags, &packet)?;
        until(&format!("the refusal of a lock behind {tags} tags"), || {
            let (gated, audited) = counts(vip.into())?;
            Ok(match audited.refused > before.refused {
                true => Seen::Yes(()),
                false => Seen::No(format!("{gated:?}, {audited:?}")),
            })
        })?;
    }

    // A tunnel that has no remote end, through the other address.
    run(root.command("modprobe").arg("ip_gre"))?;
    root.ip(&format!(
        "link add gre1 type gre local {OTHER}\nlink set gre1 up\n"
    ))?;
    let inner = packet(&mut wired, udp.port())?;
    let outside = (Ipv4Addr::new(10, 77, 2, 1), OTHER.parse()?);
    let outer = crafted::ipv4(crafted::GRE, outside.0, outside.1, &crafted::gre(&inner))?;
    ensure_guarded(&wired, "a tunnel without a remote end", 1, || {
        wire.send(0, &outer)
    })?;

    // Another address and port, translated into the VIP's.
    const TRANSLATED: u16 = 9999;
    let rules = format!(
        "table ip nlmfotest {{ chain in {{ type nat hook prerouting priority -100; \
         udp dport {TRANSLATED} dnat to {udp}; tcp dport {TRANSLATED} dnat to {tcp}; }}; }}"
    );
    run(root.command("nft").arg(&rules))?;
    let translated = (IpAddr::from(outside.1), TRANSLATED).into();
    let range = wired.range();
    let call = caller.call(NEW, &wired.file, range)?;
    ensure_guarded(&wired, "address translation, UDP", 1, || {
        Datagrams::connect(wired.net.node(), None, translated)?.send(&call)
    })?;
    let mut stream = Stream::connect(wired.net.node(), None, translated)?;
    ensure_guarded(&wired, "address translation, TCP", 2, || {
        stream.send(&call.record)
    })?;
    drop(stream);
    run(root
        .command("nft")
        .args(["delete", "table", "ip", "nlmfotest"]))?;

    fence(vip.into(), Some(Duration::from_mins(5)))?;
    ensure_dropped(&mut wired, "in a fence")?;
    let fenced = packet(&mut wired, udp.port())?;
    ensure_guarded(&wired, "3 tags in a fence", 1, || wire.send(3, &fenced))?;
    fence(vip.into(), None)?;

    // Those that mean no harm, by what was dropped before and is covered now; by a VLAN too.
    open(&tool, &[VIP])?;
    let (_, before) = counts(vip.into())?;
    for gateway in ["10.79.0.254", "10.81.0.254"] {
        late.ip(&format!("route replace {VIP} via {gateway}\n"))?;
        for (ask, expected) in [(NEW, REFUSED), (RECLAIM, GRANTED)] {
            for transport in [Transport::Tcp, Transport::Udp] {
                let range = wired.range();
                let call = caller.call(ask, &wired.file, range)?;
                let answer = match transport {
                    Transport::Tcp => Stream::connect(&late, None, tcp)?.ask(&call),
                    Transport::Udp => Datagrams::connect(&late, None, udp)?.ask(&call),
                };
                let answer = answer.with_context(|| {
                    format!("{ask:?}, {gateway}, {transport}: {:?}", counts(vip.into()))
                })?;
                ensure!(
                    answer == expected,
                    "{ask:?}, {gateway}, {transport}: {answer:?}"
                );
                if ask == RECLAIM {
                    wired.held.insert(range.start);
                }
            }
        }
    }
    wired.ensure_held()?;
    ensure_answers(&window(&tool, VIP)?, 4, before.refused + 4)?;
    Ok(End::Pass)
}

/// Raises a fence or removes it, and does nothing else.
fn fence(vip: IpAddr, lasting: Option<Duration>) -> Result<()> {
    let mut gate = Gate::in_force()?.context("the gate is gone")?;
    let before = gate.maps.window(vip.into())?.context("no window")?;
    let until = lasting.map_or(0, |lasting| moment::after(moment::now(), lasting));
    let window: Window = moment::fenced(before, until);
    Ok(gate.maps.set_window(vip.into(), window)?)
}

fn discarded(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    open(&tool, &[VIP])?;
    let wire = Wire::new(wired.net.node(), "br0")?;
    let mut counts = (0, 0);
    for flaw in [Flaw::Checksum, Flaw::Acknowledgement] {
        for (ask, expected) in [(NEW, REFUSED), (RECLAIM, GRANTED)] {
            let (caller, mut stream) = wired.stream(wired.lab.vips[0], NlmVersion::V4)?;
            let range = wired.range();
            let call = caller.call(ask, &wired.file, range)?;
            // A record of zeros, which concerns nobody, as long as the call.
            let mut decoy = vec![0; call.record.len()];
            decoy[..MARKER].copy_from_slice(&call.record[..MARKER]);
            let ends = stream.ends()?;
            wire.send(0, &crafted::flawed(stream.tcp(), ends, &decoy, flaw)?)?;
            let answer = stream
                .ask(&call)
                .with_context(|| format!("{flaw:?}, {ask:?}"))?;
            ensure!(answer == expected, "{flaw:?}, {ask:?}: {answer:?}");
            if ask == RECLAIM {
                wired.held.insert(range.start);
                counts.0 += 1;
            } else {
                counts.1 += 1;
            }
        }
    }
    wired.ensure_held()?;
    let window = window(&tool, VIP)?;
    ensure_answers(&window, counts.0, counts.1)?;
    // Each was held back until TCP was known not to take the bytes before it.
    let dropped = window["gate"]["packets_dropped"].as_u64();
    ensure!(dropped >= Some(4), "{window}");
    Ok(End::Pass)
}
