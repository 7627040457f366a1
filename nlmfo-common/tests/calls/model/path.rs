//! The way of a stream from the client through the gate to the server's TCP.

use std::collections::VecDeque;

use nlmfo_common::stream::{SETTLED, Tcp};

use super::gate::{Gate, Verdict};

/// Where the client's next segment begins.
#[derive(Clone, Copy, Debug)]
pub enum Start {
    /// Where the last new one ended.
    Next,
    /// At the first byte that the server lacks.
    Again,
    /// So many bytes before that: the server's answer was lost.
    Back(u16),
    /// So many bytes after what was sent: what is between comes later.
    Gap(u16),
}

#[derive(Clone, Copy, Debug)]
pub enum Fate {
    Arrives,
    ArrivesTwice,
    /// On its way from the gate to TCP for this part of [`SETTLED`], in 256ths.
    ArrivesLate(u8),
    LostBeforeGate,
    LostAfterGate,
    /// TCP discards it after the gate, for its checksum, ACK, timestamp or signature.
    Discarded(Decoy),
}

/// What is in a segment that TCP discards, in place of what the client sends there.
#[derive(Clone, Copy, Debug)]
pub enum Decoy {
    /// One byte is another one.
    Changed(u16, u8),
    /// A record that concerns nobody, up to the segment's end.
    Harmless,
    /// The record marker of such a one, that reaches far beyond it.
    Endless,
}

impl Decoy {
    fn put(self, bytes: &mut [u8]) {
        const LAST: u32 = 1 << 31;
        match self {
            Decoy::Changed(at, change) => {
                let at = usize::from(at) % bytes.len();
                bytes[at] ^= change;
            }
            Decoy::Harmless | Decoy::Endless => {
                let len = match self {
                    Decoy::Harmless => bytes.len().saturating_sub(4) as u32,
                    _ => 4000,
                };
                bytes.fill(0);
                for (byte, marker) in bytes.iter_mut().zip((LAST | len).to_be_bytes()) {
                    *byte = marker;
                }
            }
        }
    }
}

/// A segment on its way.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub start: Start,
    pub len: u16,
    pub fate: Fate,
    /// How long the client waits before it, in 16ths of [`SETTLED`].
    pub pause: u8,
}

/// The server's TCP: what its application can read, and what it keeps beyond a gap.
#[derive(Default)]
struct Receiver {
    accepted: Vec<u8>,
    kept: Vec<Option<u8>>,
    /// Whether a byte that comes again takes the place of the one that is kept. TCP does
    /// the one or the other, as the segments lie.
    prefers_new: bool,
}

impl Receiver {
    fn take(&mut self, start: usize, bytes: &[u8]) {
        for (at, &byte) in (start..).zip(bytes) {
            let Some(at) = at.checked_sub(self.accepted.len()) else {
                continue;
            };
            if self.kept.len() <= at {
                self.kept.resize(at + 1, None);
            }
            if self.prefers_new || self.kept[at].is_none() {
                self.kept[at] = Some(byte);
            }
        }
        let whole = self.kept.iter().take_while(|byte| byte.is_some()).count();
        self.accepted.extend(self.kept.drain(..whole).flatten());
    }
}

pub struct Path<'a> {
    sent: &'a [u8],
    isn: u32,
    pub gate: Gate,
    /// The end of what was sent so far.
    frontier: usize,
    now: u64,
    tcp: Receiver,
    /// Between the gate and TCP: when it arrives, where it begins, its bytes.
    under_way: VecDeque<(u64, usize, Vec<u8>)>,
    pub is_closed: bool,
}

impl<'a> Path<'a> {
    pub fn new(sent: &'a [u8], isn: u32, kernel_grace: Vec<bool>) -> Self {
        Self {
            sent,
            isn,
            gate: Gate::new(isn, kernel_grace),
            frontier: 0,
            now: SETTLED,
            tcp: Receiver {
                prefers_new: isn.is_multiple_of(2),
                ..Receiver::default()
            },
            under_way: VecDeque::new(),
            is_closed: false,
        }
    }

    /// What the server's application reads.
    pub fn received(&self) -> &[u8] {
        &self.tcp.accepted
    }

    pub fn play(&mut self, event: Event) {
        self.pause(u64::from(event.pause) * SETTLED / 16);
        let accepted = self.tcp.accepted.len();
        let start = match event.start {
            Start::Next => self.frontier,
            Start::Again => accepted,
            Start::Back(bytes) => accepted.saturating_sub(bytes.into()),
            Start::Gap(bytes) => self.frontier + usize::from(bytes),
        };
        if !matches!(event.start, Start::Gap(_)) {
            let end = start.saturating_add(event.len.into()).min(self.sent.len());
            self.frontier = self.frontier.max(end);
        }
        self.send(start, event.len.into(), event.fate);
    }

    /// Time goes by, and what is under way arrives.
    pub fn pause(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
        let now = self.now;
        let due = |arrives: u64| arrives <= now;
        while let Some(at) = self
            .under_way
            .iter()
            .position(|(arrives, ..)| due(*arrives))
        {
            let (_, start, bytes) = self.under_way.remove(at).expect("found");
            self.tcp.take(start, &bytes);
        }
    }

    /// Sends what the server lacks, in pieces of this many bytes, each after TCP's
    /// shortest timeout, until all is there or nothing gets through any more.
    pub fn finish(&mut self, piece: usize) {
        self.pause(2 * SETTLED);
        while !self.is_closed && self.tcp.accepted.len() < self.sent.len() {
            let before = self.tcp.accepted.len();
            self.send(before, piece, Fate::Arrives);
            if self.tcp.accepted.len() == before {
                break;
            }
        }
    }

    /// One segment, as far as there are bytes.
    pub fn send(&mut self, start: usize, len: usize, fate: Fate) {
        let start = start.min(self.sent.len());
        let end = (start + len).min(self.sent.len());
        if start == end {
            return;
        }
        let mut bytes = self.sent[start..end].to_vec();
        let (copies, delay) = match fate {
            Fate::Arrives => (1, Some(0)),
            Fate::ArrivesTwice => (2, Some(0)),
            Fate::ArrivesLate(part) => (1, Some(u64::from(part) * SETTLED / 256)),
            Fate::LostAfterGate => (1, None),
            Fate::LostBeforeGate => (0, None),
            Fate::Discarded(decoy) => {
                decoy.put(&mut bytes);
                (1, None)
            }
        };
        for _ in 0..copies {
            if self.is_closed {
                return;
            }
            let seq = self.isn.wrapping_add(1);
            let tcp = Tcp {
                is_open: true,
                accepted: seq.wrapping_add(self.tcp.accepted.len() as u32),
                is_busy: false,
                has_gap: self.tcp.kept.iter().any(Option::is_some),
            };
            let seq = seq.wrapping_add(start as u32);
            match self.gate.segment(seq, &bytes, self.now, &tcp) {
                Verdict::Drop => {}
                Verdict::Close => self.is_closed = true,
                Verdict::Pass(passed) => {
                    assert_eq!(passed.len(), end - start, "the segment has another length");
                    match delay {
                        Some(0) => self.tcp.take(start, &passed),
                        Some(delay) => {
                            self.under_way.push_back((self.now + delay, start, passed));
                        }
                        None => {}
                    }
                }
            }
        }
    }
}
