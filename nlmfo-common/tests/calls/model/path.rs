//! The way of a stream from the client through the gate to the server's TCP.

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
    LostBeforeGate,
    LostAfterGate,
}

/// A segment on its way.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub start: Start,
    pub len: u16,
    pub fate: Fate,
}

pub struct Path<'a> {
    sent: &'a [u8],
    isn: u32,
    pub gate: Gate,
    /// The end of what was sent so far.
    frontier: usize,
    /// What the gate let through, whether or not it arrived.
    passed: Vec<Option<u8>>,
    /// How many bytes the server's application can read, and what else it has.
    readable: usize,
    has: Vec<bool>,
    pub is_closed: bool,
}

impl<'a> Path<'a> {
    pub fn new(sent: &'a [u8], isn: u32, kernel_grace: Vec<bool>) -> Self {
        Self {
            sent,
            isn,
            gate: Gate::new(isn, kernel_grace),
            frontier: 0,
            passed: vec![None; sent.len()],
            readable: 0,
            has: vec![false; sent.len()],
            is_closed: false,
        }
    }

    /// What the server's application reads, as far as there is no gap.
    pub fn received(&self) -> Vec<u8> {
        let bytes = self.passed[..self.readable].iter();
        bytes.map(|byte| byte.expect("arrived")).collect()
    }

    pub fn play(&mut self, event: Event) {
        let start = match event.start {
            Start::Next => self.frontier,
            Start::Again => self.readable,
            Start::Back(bytes) => self.readable.saturating_sub(bytes.into()),
            Start::Gap(bytes) => self.frontier + usize::from(bytes),
        };
        if !matches!(event.start, Start::Gap(_)) {
            let end = start.saturating_add(event.len.into()).min(self.sent.len());
            self.frontier = self.frontier.max(end);
        }
        let (copies, arrive) = match event.fate {
            Fate::Arrives => (1, true),
            Fate::ArrivesTwice => (2, true),
            Fate::LostAfterGate => (1, false),
            Fate::LostBeforeGate => (0, false),
        };
        for _ in 0..copies {
            self.send(start, event.len.into(), arrive);
        }
    }

    /// Sends what the server lacks, in pieces of this many bytes, until all is there
    /// or nothing gets through any more.
    pub fn finish(&mut self, piece: usize) {
        while !self.is_closed && self.readable < self.sent.len() {
            let before = self.readable;
            self.send(before, piece, true);
            if self.readable == before {
                break;
            }
        }
    }

    /// One segment, as far as there are bytes. Panics if the gate lets a byte through
    /// that differs from what it let through in its place before.
    pub fn send(&mut self, start: usize, len: usize, arrives: bool) {
        let start = start.min(self.sent.len());
        let end = (start + len).min(self.sent.len());
        if self.is_closed || start == end {
            return;
        }
        let seq = self.isn.wrapping_add(1).wrapping_add(start as u32);
        match self.gate.segment(seq, &self.sent[start..end]) {
            Verdict::Drop => {}
            Verdict::Close => self.is_closed = true,
            Verdict::Pass(bytes) => {
                assert_eq!(bytes.len(), end - start, "the segment has another length");
                for (at, byte) in (start..).zip(bytes) {
                    let first = *self.passed[at].get_or_insert(byte);
                    assert_eq!(first, byte, "byte {at} differs when it comes again");
                    self.has[at] |= arrives;
                }
                while self.has.get(self.readable) == Some(&true) {
                    self.readable += 1;
                }
            }
        }
    }
}
