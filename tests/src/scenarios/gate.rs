//! The grace gate on the wire: whatever a client does with its bytes, in a window a
//! new lock is refused and a reclaim granted.

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::NlmVersion;
use nlmfo::rpc::nlm::Status;

use super::{Context, End, Kernels, Scenario};
use crate::guest::command::run;
use crate::guest::gated::{ensure_answers, open, window};
use crate::guest::locker::{Mode, Range};
use crate::guest::node::TestNode;
use crate::guest::tool::Tool;
use crate::guest::wait::{Seen, until};
use crate::guest::wire::Ask;
use crate::guest::wired::{GRANTED, IN_GRACE, REFUSED, VIP, VIP6, Wired};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "gate-segments",
        claim: "splitting, batching and mixing calls does not bypass a window",
        run: segments,
        kernels: Kernels::One(
            "the gate is one program; grace-window and gate-checksums run it on every kernel",
        ),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "gate-lossy",
        claim: "over a network that loses, duplicates and reorders packets, each call is answered as in grace",
        run: lossy,
        kernels: Kernels::One(
            "the gate is one program; grace-window and gate-checksums run it on every kernel",
        ),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "gate-checksums",
        claim: "calls that the gate changed have correct checksums, with offload and without",
        run: checksums,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "gate-old-connection",
        claim: "a connection older than the window is reset; an extended window keeps its own",
        run: old_connection,
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "gate-share",
        claim: "in a window, a SHARE through the VIP gets no answer unless it is a reclaim",
        run: share,
        kernels: Kernels::One(
            "the gate is one program; grace-window and gate-checksums run it on every kernel",
        ),
        ..Scenario::DEFAULT
    },
    Scenario {
        name: "gate-fragments",
        claim: "in a window, a LOCK in IP fragments is dropped",
        run: fragments,
        ..Scenario::DEFAULT
    },
];

const WHOLE: usize = usize::MAX;

fn segments(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    open(&tool, &[VIP, VIP6])?;
    // Else the kernel joins small writes while one is on its way.
    let autocorking = "/proc/sys/net/ipv4/tcp_autocorking";
    wired.net.node().write(autocorking, "0")?;
    for vip in 0..IN_GRACE.len() {
        for version in [NlmVersion::V3, NlmVersion::V4] {
            for (calls, pieces) in [
                (8, (1, 1)),
                (10, (2, 2)),
                (10, (3, 3)),
                (10, (1, 5)),
                (20, (7, 7)),
                (20, (3, 64)),
                (30, (1, 399)),
                (40, (1, WHOLE)),
                (100, (WHOLE, WHOLE)),
            ] {
                wired.exchange((vip, version), calls, pieces)?;
            }
        }
    }
    wired.ensure_enforced(&tool)?;
    Ok(End::Pass)
}

fn lossy(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    open(&tool, &[VIP, VIP6])?;
    let spoilt = "root netem delay 2ms reorder 3% loss 3% duplicate 5% limit 10000";
    for (node, device) in [(wired.net.node(), "eth0"), (&root, "vraw")] {
        let mut tc = node.command("tc");
        tc.args(["qdisc", "add", "dev", device]);
        run(tc.args(spoilt.split(' ')))?;
    }
    for vip in 0..IN_GRACE.len() {
        for version in [NlmVersion::V3, NlmVersion::V4] {
            for (calls, pieces) in [(8, (1, 33)), (20, (3, 200)), (50, (WHOLE, WHOLE))] {
                wired.exchange((vip, version), calls, pieces)?;
            }
        }
    }
    // What lockd gets twice it answers twice, so the counts are not known.
    for (_, index) in IN_GRACE {
        let vip = wired.lab.vips[index];
        let mut client = wired.retrying(vip)?;
        for _ in 0..10 {
            let (new, old) = (wired.range(), wired.range());
            let status = client.nm_lock(&wired.file, 7, new, Mode::Write)?;
            ensure!(
                status == Status::DeniedGracePeriod,
                "a new lock through {vip} (UDP): {status:?}"
            );
            client.granted(|raw| raw.reclaim(&wired.file, 7, old, Mode::Write))?;
            wired.held.insert(old.start);
        }
    }
    wired.ensure_held()?;
    for ((vip, _), (reclaimed, refused)) in IN_GRACE.into_iter().zip(wired.counts) {
        let window = window(&tool, vip)?;
        let answers = &window["lockd"];
        let at_least = |name: &str, count| answers[name].as_u64() >= Some(count + 10);
        ensure!(
            at_least("reclaimed", reclaimed)
                && at_least("refused", refused)
                && answers["violations"] == 0
                && answers["reclaims_refused"] == 0,
            "{window}"
        );
    }
    Ok(End::Pass)
}

/// Packets of either family that the server's kernel found to have a wrong checksum.
fn checksum_errors(wired: &Wired) -> Result<u64> {
    let node = wired.lab.server.node();
    let mut errors = 0;
    // Pairs of lines: names, and the numbers below them.
    let snmp = node.read("/proc/net/snmp")?;
    let lines: Vec<&str> = snmp.lines().collect();
    for [names, numbers] in lines.as_chunks().0 {
        for (name, number) in names.split(' ').zip(numbers.split(' ')) {
            if name == "InCsumErrors" {
                errors += number.parse::<u64>().context("/proc/net/snmp")?;
            }
        }
    }
    for line in node.read("/proc/net/snmp6")?.lines() {
        let mut words = line.split_whitespace();
        if words
            .next()
            .is_some_and(|name| name.ends_with("InCsumErrors"))
        {
            let number = words.next().context("/proc/net/snmp6")?;
            errors += number.parse::<u64>().context("/proc/net/snmp6")?;
        }
    }
    Ok(errors)
}

fn checksums(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    open(&tool, &[VIP, VIP6])?;
    let before = checksum_errors(&wired)?;
    for offload in ["on", "off"] {
        for (node, device) in [(wired.net.node(), "eth0"), (&root, "vraw")] {
            let mut ethtool = node.command("ethtool");
            run(ethtool.args(["-K", device, "tx", offload, "rx", offload]))?;
        }
        for vip in 0..IN_GRACE.len() {
            for version in [NlmVersion::V3, NlmVersion::V4] {
                // A first segment of one byte moves the byte that the gate writes to
                // the other half of a 16-bit word of the checksum.
                for first in [WHOLE, 1] {
                    wired.exchange((vip, version), 10, (first, WHOLE))?;
                }
                // One call: the changes of two may cancel out.
                wired.exchange((vip, version), 1, (1, WHOLE))?;
                wired.exchange_datagrams((vip, version))?;
            }
        }
        let errors = checksum_errors(&wired)? - before;
        ensure!(
            errors == 0,
            "offload {offload}: {errors} packets with a wrong checksum"
        );
    }
    wired.ensure_enforced(&tool)?;

    // That the counters count what is wrong: datagrams with a flipped bit.
    let (caller, datagrams) = wired.datagrams(wired.lab.vips[1], NlmVersion::V4)?;
    let netem = "qdisc add dev eth0 root netem corrupt 100%";
    run(wired.net.node().command("tc").args(netem.split(' ')))?;
    until("a checksum error that is counted", || {
        let range = wired.range();
        datagrams.send(&caller.call(Ask::Test, &wired.file, range)?)?;
        Ok(match checksum_errors(&wired)? - before {
            0 => Seen::No("none".into()),
            _ => Seen::Yes(()),
        })
    })?;
    Ok(End::Pass)
}

fn old_connection(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    let mut old = Vec::new();
    for (_, index) in IN_GRACE {
        let (caller, mut stream) = wired.stream(wired.lab.vips[index], NlmVersion::V4)?;
        let answer = wired.ask(&caller, &mut stream, false)?;
        ensure!(answer == GRANTED, "before any window: {answer:?}");
        old.push((caller, stream));
    }
    open(&tool, &[VIP, VIP6])?;
    for ((vip, index), (caller, mut stream)) in IN_GRACE.into_iter().zip(old) {
        let range = wired.range();
        let ask = Ask::NmLock { reclaim: false };
        stream.send(&caller.call(ask, &wired.file, range)?.record)?;
        stream.await_reset().with_context(|| vip.to_owned())?;

        let (caller, mut stream) = wired.stream(wired.lab.vips[index], NlmVersion::V4)?;
        for extended in [false, true] {
            if extended {
                open(&tool, &[vip])?;
            }
            for (reclaim, expected) in [(false, REFUSED), (true, GRANTED)] {
                let answer = wired.ask(&caller, &mut stream, reclaim)?;
                ensure!(
                    answer == expected,
                    "{vip}, connected in the window (extended: {extended}), reclaim {reclaim}: \
                     {answer:?}"
                );
            }
        }
        let window = window(&tool, vip)?;
        ensure_answers(&window, 2, 2)?;
        let closed = &window["gate"]["connections_closed"];
        ensure!(closed.as_u64() >= Some(1), "{window}");
    }
    wired.ensure_held()?;
    Ok(End::Pass)
}

fn share(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    open(&tool, &[VIP, VIP6])?;
    for version in [NlmVersion::V3, NlmVersion::V4] {
        for (_, index) in IN_GRACE {
            let (caller, datagrams) = wired.datagrams(wired.lab.vips[index], version)?;
            let call = |ask| caller.call(ask, &wired.file, Range::WHOLE);
            datagrams.send(&call(Ask::Share { reclaim: false })?)?;
            // lockd is one thread and takes datagrams in order: had it got the SHARE, its
            // answer would come first.
            let answer = datagrams.ask(&call(Ask::Test)?)?;
            ensure!(answer == GRANTED, "TEST, sent after a SHARE: {answer:?}");
            let answer = datagrams.ask(&call(Ask::Share { reclaim: true })?)?;
            ensure!(answer == GRANTED, "SHARE as a reclaim: {answer:?}");
        }
        let (caller, datagrams) = wired.datagrams(wired.lab.vips[1], version)?;
        let new = caller.call(Ask::Share { reclaim: false }, &wired.file, Range::WHOLE)?;
        let answer = datagrams.ask(&new)?;
        ensure!(answer == GRANTED, "SHARE through another VIP: {answer:?}");
    }
    for (vip, _) in IN_GRACE {
        let window = window(&tool, vip)?;
        ensure!(window["gate"]["shares_dropped"] == 2, "{window}");
    }
    Ok(End::Pass)
}

fn fragments(context: &Context) -> Result<End> {
    /// Of a name and of an owner, so that both together exceed a packet.
    const LONG: usize = 1000;
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    // Before the window a call of this length gets through, of either family.
    for windows_open in [false, true] {
        if windows_open {
            open(&tool, &[VIP, VIP6])?;
        }
        for (vip, index) in IN_GRACE {
            let (caller, datagrams) = wired.datagrams(wired.lab.vips[index], NlmVersion::V4)?;
            let mut long = caller.clone();
            long.name = format!("{:a<LONG$}", caller.name);
            long.owner = vec![b'o'; LONG];
            let range = wired.range();
            if !windows_open {
                let call = long.call(Ask::NmLock { reclaim: false }, &wired.file, range)?;
                let answer = datagrams.ask(&call)?;
                ensure!(answer == GRANTED, "{vip}, before any window: {answer:?}");
                wired.held.insert(range.start);
                continue;
            }
            for reclaim in [false, true] {
                datagrams.send(&long.call(Ask::NmLock { reclaim }, &wired.file, range)?)?;
            }
            // Would be answered after the long ones, see `share`.
            let call = caller.call(Ask::Test, &wired.file, range)?;
            let answer = datagrams.ask(&call)?;
            ensure!(answer == GRANTED, "{vip}: {answer:?}");
        }
    }
    wired.ensure_held()?;
    for (vip, _) in IN_GRACE {
        let window = window(&tool, vip)?;
        ensure!(window["gate"]["packets_dropped"] == 2, "{window}");
    }
    Ok(End::Pass)
}
