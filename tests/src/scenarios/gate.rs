//! The grace gate on the wire: whatever a client does with its bytes, in a window a
//! new lock is refused and a reclaim granted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::nlm::Status;

use super::{Context, End, Scenario};
use crate::guest::command::run;
use crate::guest::gated::{ensure_answers, open, window};
use crate::guest::handles::FileHandle;
use crate::guest::lab::Lab;
use crate::guest::locker::{Mode, Range};
use crate::guest::place::Place;
use crate::guest::raw::{RawNet, address};
use crate::guest::tool::Tool;
use crate::guest::wait::{Seen, until};
use crate::guest::wire::{Answer, Ask, Caller, Datagrams, Stream};

pub const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "gate-segments",
        claim: "a client that splits, batches and mixes its calls gains nothing in a window",
        run: segments,
    },
    Scenario {
        name: "gate-lossy",
        claim: "over a network that loses, doubles and reorders, each call is answered as in grace",
        run: lossy,
    },
    Scenario {
        name: "gate-checksums",
        claim: "calls that the gate wrote into have right checksums, with offload and without",
        run: checksums,
    },
    Scenario {
        name: "gate-old-connection",
        claim: "a connection older than the window is reset; an extended window keeps its own",
        run: old_connection,
    },
    Scenario {
        name: "gate-share",
        claim: "in a window a SHARE through the VIP gets no answer unless it is a reclaim",
        run: share,
    },
    Scenario {
        name: "gate-fragments",
        claim: "in a window a LOCK in IP fragments does not get through",
        run: fragments,
    },
];

const VIP: &str = "10.77.0.1";
const OTHER: &str = "10.77.0.2";
const VIP6: &str = "fd77::1";

/// Of [`Lab::vips`].
const IN_GRACE: [(&str, usize); 2] = [(VIP, 0), (VIP6, 2)];

const GRANTED: Answer = Some(Status::Granted);
const REFUSED: Answer = Some(Status::DeniedGracePeriod);

/// A server with a VIP of each family in grace and another that is not, raw clients,
/// and one file.
struct Wired {
    lab: Lab,
    net: RawNet,
    file: FileHandle,
    /// First byte of the next lock. Locks do not touch, as the kernel would join them.
    next: u64,
    /// Of the next client.
    number: u16,
    /// First bytes of the locks that clients were granted.
    held: BTreeSet<u64>,
    /// Of each VIP in [`IN_GRACE`]: reclaims granted, new locks refused.
    counts: [(u64, u64); 2],
}

/// What one client sends, and what must come of it.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    answers: BTreeMap<u32, Vec<Answer>>,
    held: BTreeSet<u64>,
    reclaimed: u64,
    refused: u64,
}

impl Wired {
    fn up() -> Result<Wired> {
        let lab = Lab::up(&[VIP, OTHER, VIP6], 0)?;
        let net = RawNet::join(&lab.server)?;
        let file = net.file(&lab.server, lab.vips[1], "file")?;
        Ok(Wired {
            lab,
            net,
            file,
            next: 0,
            number: 0,
            held: BTreeSet::new(),
            counts: [(0, 0); 2],
        })
    }

    fn range(&mut self) -> Range {
        let range = Range::new(self.next, 5);
        self.next += 10;
        range
    }

    fn client(&mut self, vip: IpAddr, version: NlmVersion) -> (Caller, IpAddr) {
        self.number += 1;
        let caller = Caller::new(&format!("raw{}", self.number), version);
        (caller, address(self.number, vip))
    }

    /// A new client with a connection.
    fn stream(&mut self, vip: IpAddr, version: NlmVersion) -> Result<(Caller, Stream)> {
        let (caller, source) = self.client(vip, version);
        let peer = self.net.lockd(vip, version, Transport::Tcp)?;
        let stream = Stream::connect(self.net.place(), Some(source), peer)?;
        Ok((caller, stream))
    }

    /// A new client that speaks UDP.
    fn datagrams(&mut self, vip: IpAddr, version: NlmVersion) -> Result<(Caller, Datagrams)> {
        let (caller, source) = self.client(vip, version);
        let peer = self.net.lockd(vip, version, Transport::Udp)?;
        let datagrams = Datagrams::connect(self.net.place(), Some(source), peer)?;
        Ok((caller, datagrams))
    }

    /// About so many calls of all kinds, some of them sent twice.
    fn batch(&mut self, caller: &mut Caller, calls: usize) -> Result<Batch> {
        const MIX: [(Ask, Answer); 10] = [
            (Ask::NmLock { reclaim: false }, REFUSED),
            (Ask::NmLock { reclaim: true }, GRANTED),
            (Ask::Test, GRANTED),
            (Ask::Lock { reclaim: true }, GRANTED),
            (Ask::LockMsg { reclaim: false }, None),
            (Ask::Lock { reclaim: false }, REFUSED),
            (Ask::LockMsg { reclaim: true }, None),
            (Ask::Unlock, GRANTED),
            (Ask::NmLock { reclaim: false }, REFUSED),
            (Ask::NmLock { reclaim: true }, GRANTED),
        ];
        let mut batch = Batch::default();
        for (nth, (ask, answer)) in MIX.into_iter().cycle().take(calls).enumerate() {
            let range = self.range();
            let call = caller.call(ask, &self.file, range)?;
            let times = if nth % 7 == 0 { 2 } else { 1 };
            for _ in 0..times {
                batch.bytes.extend(&call.record);
            }
            batch.answers.insert(call.xid, vec![answer; times]);
            let times = times as u64;
            match ask {
                Ask::Lock { reclaim } | Ask::NmLock { reclaim } | Ask::LockMsg { reclaim } => {
                    if reclaim {
                        batch.held.insert(range.start);
                        batch.reclaimed += times;
                    } else {
                        batch.refused += times;
                    }
                }
                _ => {}
            }
        }
        Ok(batch)
    }

    /// One NM_LOCK and its answer.
    fn ask(&mut self, caller: &mut Caller, stream: &mut Stream, reclaim: bool) -> Result<Answer> {
        let range = self.range();
        let call = caller.call(Ask::NmLock { reclaim }, &self.file, range)?;
        let answer = stream.ask(&call)?;
        if answer == GRANTED {
            self.held.insert(range.start);
        }
        Ok(answer)
    }

    /// A new client sends a batch, the first segment of `first` bytes and the others
    /// of `piece`, and must be answered as in grace.
    fn exchange(
        &mut self,
        (vip, version): (usize, NlmVersion),
        calls: usize,
        (first, piece): (usize, usize),
    ) -> Result<()> {
        let (address, index) = IN_GRACE[vip];
        let (mut caller, mut stream) = self.stream(self.lab.vips[index], version)?;
        let batch = self.batch(&mut caller, calls)?;
        stream.send_in_pieces(&batch.bytes, first, piece)?;
        let count = batch.answers.values().map(Vec::len).sum();
        let what =
            format!("{calls} calls to {address} ({version}) in pieces of {first}, {piece}, …");
        let answers = stream.answers(count).with_context(|| what.clone())?;
        let wrong: Vec<_> = answers
            .iter()
            .filter(|(xid, answers)| batch.answers.get(xid) != Some(answers))
            .collect();
        ensure!(
            answers.len() == batch.answers.len() && wrong.is_empty(),
            "{what}: wrong answers {wrong:?}"
        );
        self.held.extend(batch.held);
        self.counts[vip].0 += batch.reclaimed;
        self.counts[vip].1 += batch.refused;
        Ok(())
    }

    /// A new client reclaims a lock over UDP and asks for another, one datagram each.
    fn exchange_datagrams(&mut self, (vip, version): (usize, NlmVersion)) -> Result<()> {
        let (address, index) = IN_GRACE[vip];
        let (mut caller, datagrams) = self.datagrams(self.lab.vips[index], version)?;
        for (reclaim, expected) in [(false, REFUSED), (true, GRANTED)] {
            let range = self.range();
            let call = caller.call(Ask::NmLock { reclaim }, &self.file, range)?;
            let answer = datagrams.ask(&call)?;
            ensure!(
                answer == expected,
                "NM_LOCK, reclaim {reclaim}, to {address} ({version}, UDP): {answer:?}"
            );
            if reclaim {
                self.held.insert(range.start);
                self.counts[vip].0 += 1;
            } else {
                self.counts[vip].1 += 1;
            }
        }
        Ok(())
    }

    /// The kernel holds what was granted and nothing else.
    fn ensure_held(&self) -> Result<()> {
        let locks = self.lab.server.locks()?;
        let starts: BTreeSet<u64> = locks.iter().map(|lock| lock.start).collect();
        ensure!(
            starts == self.held,
            "the kernel holds {:?} more than was granted, and lacks {:?}",
            starts.difference(&self.held),
            self.held.difference(&starts)
        );
        Ok(())
    }

    /// [`Wired::ensure_held`], and the audit says the same.
    fn ensure_enforced(&self, tool: &Tool) -> Result<()> {
        self.ensure_held()?;
        for ((vip, _), (reclaimed, refused)) in IN_GRACE.into_iter().zip(self.counts) {
            ensure_answers(&window(tool, vip)?, reclaimed, refused)?;
        }
        Ok(())
    }
}

const WHOLE: usize = usize::MAX;

fn segments(context: &Context) -> Result<End> {
    let root = Place::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    open(&tool, &[VIP, VIP6])?;
    // Else the kernel joins small writes while one is on its way.
    let autocorking = "/proc/sys/net/ipv4/tcp_autocorking";
    wired.net.place().write(autocorking, "0")?;
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
    let root = Place::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    open(&tool, &[VIP, VIP6])?;
    let spoilt = "root netem delay 2ms reorder 3% loss 3% duplicate 5% limit 10000";
    for (place, device) in [(wired.net.place(), "eth0"), (&root, "vraw")] {
        let mut tc = place.command("tc");
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
    // The library sends datagrams again when no answer comes; what lockd gets twice
    // it answers twice, so the counts are not known.
    for (_, index) in IN_GRACE {
        wired.number += 1;
        let vip = wired.lab.vips[index];
        let mut client = (wired.net).client(wired.number, vip, NlmVersion::V4, Transport::Udp)?;
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
    let place = wired.lab.server.place();
    let mut errors = 0;
    // Pairs of lines: names, and the numbers below them.
    let snmp = place.read("/proc/net/snmp")?;
    let lines: Vec<&str> = snmp.lines().collect();
    for [names, numbers] in lines.as_chunks().0 {
        for (name, number) in names.split(' ').zip(numbers.split(' ')) {
            if name == "InCsumErrors" {
                errors += number.parse::<u64>().context("/proc/net/snmp")?;
            }
        }
    }
    for line in place.read("/proc/net/snmp6")?.lines() {
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
    let root = Place::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    open(&tool, &[VIP, VIP6])?;
    let before = checksum_errors(&wired)?;
    for offload in ["on", "off"] {
        for (place, device) in [(wired.net.place(), "eth0"), (&root, "vraw")] {
            let mut ethtool = place.command("ethtool");
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
    let (mut caller, datagrams) = wired.datagrams(wired.lab.vips[1], NlmVersion::V4)?;
    let netem = "qdisc add dev eth0 root netem corrupt 100%";
    run(wired.net.place().command("tc").args(netem.split(' ')))?;
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
    let root = Place::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    let mut old = Vec::new();
    for (_, index) in IN_GRACE {
        let (mut caller, mut stream) = wired.stream(wired.lab.vips[index], NlmVersion::V4)?;
        let answer = wired.ask(&mut caller, &mut stream, false)?;
        ensure!(answer == GRANTED, "before any window: {answer:?}");
        old.push((caller, stream));
    }
    open(&tool, &[VIP, VIP6])?;
    for ((vip, index), (mut caller, mut stream)) in IN_GRACE.into_iter().zip(old) {
        let range = wired.range();
        let ask = Ask::NmLock { reclaim: false };
        stream.send(&caller.call(ask, &wired.file, range)?.record)?;
        stream.await_reset().with_context(|| vip.to_owned())?;

        let (mut caller, mut stream) = wired.stream(wired.lab.vips[index], NlmVersion::V4)?;
        for extended in [false, true] {
            if extended {
                open(&tool, &[vip])?;
            }
            for (reclaim, expected) in [(false, REFUSED), (true, GRANTED)] {
                let answer = wired.ask(&mut caller, &mut stream, reclaim)?;
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
    let root = Place::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    open(&tool, &[VIP, VIP6])?;
    for version in [NlmVersion::V3, NlmVersion::V4] {
        for (_, index) in IN_GRACE {
            let (mut caller, datagrams) = wired.datagrams(wired.lab.vips[index], version)?;
            let mut call = |ask| caller.call(ask, &wired.file, Range::WHOLE);
            datagrams.send(&call(Ask::Share { reclaim: false })?)?;
            // lockd is one thread and takes datagrams in order: had it got the SHARE, its
            // answer would come first.
            let answer = datagrams.ask(&call(Ask::Test)?)?;
            ensure!(answer == GRANTED, "TEST, sent after a SHARE: {answer:?}");
            let answer = datagrams.ask(&call(Ask::Share { reclaim: true })?)?;
            ensure!(answer == GRANTED, "SHARE as a reclaim: {answer:?}");
        }
        let (mut caller, datagrams) = wired.datagrams(wired.lab.vips[1], version)?;
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
    let root = Place::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    // Before the window a call of this length gets through, of either family.
    for windows_open in [false, true] {
        if windows_open {
            open(&tool, &[VIP, VIP6])?;
        }
        for (vip, index) in IN_GRACE {
            let (mut caller, datagrams) = wired.datagrams(wired.lab.vips[index], NlmVersion::V4)?;
            let short = caller.clone();
            caller.name = format!("{:a<LONG$}", short.name);
            caller.owner = vec![b'o'; LONG];
            let range = wired.range();
            if !windows_open {
                let long = caller.call(Ask::NmLock { reclaim: false }, &wired.file, range)?;
                let answer = datagrams.ask(&long)?;
                ensure!(answer == GRANTED, "{vip}, before any window: {answer:?}");
                wired.held.insert(range.start);
                continue;
            }
            for reclaim in [false, true] {
                let long = caller.call(Ask::NmLock { reclaim }, &wired.file, range)?;
                datagrams.send(&long)?;
            }
            (caller.name, caller.owner) = (short.name, short.owner);
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
