//! A server with some VIPs in grace and raw clients that send arbitrary bytes: the fixture of the grace
//! gate's scenarios.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::nlm::Status;

use super::gated::{ensure_answers, window};
use super::handles::FileHandle;
use super::lab::Lab;
use super::locker::Range;
use super::raw::{RawClient, RawNet, address};
use super::tool::Tool;
use super::wire::{Answer, Ask, Caller, Datagrams, Stream};

pub const VIP: &str = "10.77.0.1";
pub const OTHER: &str = "10.77.0.2";
pub const VIP6: &str = "fd77::1";

/// Of [`Lab::vips`].
pub const IN_GRACE: [(&str, usize); 2] = [(VIP, 0), (VIP6, 2)];

pub const GRANTED: Answer = Some(Status::Granted);
pub const REFUSED: Answer = Some(Status::DeniedGracePeriod);

/// A server with a VIP of each family in grace and another that is not, raw clients,
/// and one file.
pub struct Wired {
    pub lab: Lab,
    pub net: RawNet,
    pub file: FileHandle,
    /// First byte of the next lock. Locks do not touch, as the kernel would join them.
    next: u64,
    /// Of the next client.
    number: u16,
    /// First bytes of the locks that clients were granted.
    pub held: BTreeSet<u64>,
    /// Of each VIP in [`IN_GRACE`]: reclaims granted, new locks refused.
    pub counts: [(u64, u64); 2],
}

/// What one client sends, and the expected answers.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    answers: BTreeMap<u32, Vec<Answer>>,
    held: BTreeSet<u64>,
    reclaimed: u64,
    refused: u64,
}

impl Wired {
    pub fn up() -> Result<Wired> {
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

    pub fn range(&mut self) -> Range {
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
    pub fn stream(&mut self, vip: IpAddr, version: NlmVersion) -> Result<(Caller, Stream)> {
        let (caller, source) = self.client(vip, version);
        let peer = self.net.lockd(vip, version, Transport::Tcp)?;
        let stream = Stream::connect(self.net.node(), Some(source), peer)?;
        Ok((caller, stream))
    }

    /// A new client that speaks UDP.
    pub fn datagrams(&mut self, vip: IpAddr, version: NlmVersion) -> Result<(Caller, Datagrams)> {
        let (caller, source) = self.client(vip, version);
        let peer = self.net.lockd(vip, version, Transport::Udp)?;
        let datagrams = Datagrams::connect(self.net.node(), Some(source), peer)?;
        Ok((caller, datagrams))
    }

    /// A new client that speaks UDP and asks again when no answer comes.
    pub fn retrying(&mut self, vip: IpAddr) -> Result<RawClient> {
        self.number += 1;
        (self.net).client(self.number, vip, NlmVersion::V4, Transport::Udp)
    }

    /// About so many calls of all kinds, some of them sent twice.
    fn batch(&mut self, caller: &Caller, calls: usize) -> Result<Batch> {
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
    pub fn ask(&mut self, caller: &Caller, stream: &mut Stream, reclaim: bool) -> Result<Answer> {
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
    pub fn exchange(
        &mut self,
        (vip, version): (usize, NlmVersion),
        calls: usize,
        (first, piece): (usize, usize),
    ) -> Result<()> {
        let (address, index) = IN_GRACE[vip];
        let (caller, mut stream) = self.stream(self.lab.vips[index], version)?;
        let batch = self.batch(&caller, calls)?;
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
    pub fn exchange_datagrams(&mut self, (vip, version): (usize, NlmVersion)) -> Result<()> {
        let (address, index) = IN_GRACE[vip];
        let (caller, datagrams) = self.datagrams(self.lab.vips[index], version)?;
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
    pub fn ensure_held(&self) -> Result<()> {
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
    pub fn ensure_enforced(&self, tool: &Tool) -> Result<()> {
        self.ensure_held()?;
        for ((vip, _), (reclaimed, refused)) in IN_GRACE.into_iter().zip(self.counts) {
            ensure_answers(&window(tool, vip)?, reclaimed, refused)?;
        }
        Ok(())
    }
}
