//! The gate, as its programs use the parser while a window is open, on packets that
//! are bytes in memory.

use std::collections::BTreeMap;

use nlmfo_common::nlm_call::{Calls, Found, Fsid};
use nlmfo_common::stream::{Follower, Place, Tcp};

/// Something stands before the payload in a packet, and offsets count from there.
const HEADERS: usize = 54;

/// What becomes of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It goes on with this payload.
    Pass(Vec<u8>),
    Drop,
    Close,
}

/// What was decided about a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    pub xid: u32,
    pub is_share: bool,
    pub sent: u32,
    pub written: u32,
    pub fsid: Option<Fsid>,
}

#[derive(Clone)]
pub struct Gate {
    pub follower: Follower,
    /// By offset in the stream or datagram, the last decision on each byte.
    pub log: BTreeMap<usize, Decided>,
    isn: u32,
    /// Whether the kernel is in grace at the first call, the second, and so on over
    /// again; never if empty.
    kernel_grace: Vec<bool>,
    calls: usize,
}

impl Gate {
    /// Sees the SYN of a connection.
    pub fn new(isn: u32, kernel_grace: Vec<bool>) -> Self {
        let mut follower = Follower::default();
        follower.begin(isn);
        Self {
            follower,
            log: BTreeMap::new(),
            isn,
            kernel_grace,
            calls: 0,
        }
    }

    /// A segment comes by, at this time and while TCP is there.
    pub fn segment(&mut self, seq: u32, payload: &[u8], now: u64, tcp: &Tcp) -> Verdict {
        let len = payload.len() as u32;
        if self.follower.stream.calls.is_lost() {
            return Verdict::Close;
        }
        let skip = match self.follower.place(seq, len, now, tcp) {
            Place::Old => return Verdict::Pass(payload.to_vec()),
            Place::Early => return Verdict::Drop,
            Place::Lost => return Verdict::Close,
            Place::New(skip) => skip,
            Place::Anew { kept, skip } => {
                self.follower.go_back(kept);
                let at = self
                    .follower
                    .stream
                    .next
                    .wrapping_sub(self.isn.wrapping_add(1));
                self.log.retain(|&byte, _| byte < at as usize);
                skip
            }
        };
        let mut packet = [&[0; HEADERS], payload].concat();
        self.follower.keep();
        self.follower.stream.calls.at = HEADERS as u32 + skip;
        self.follower.stream.calls.end = packet.len() as u32;
        loop {
            match self.follower.stream.calls.step(packet.as_slice()) {
                Found::More => {}
                Found::End => {
                    self.follower.pass(seq.wrapping_add(len), now);
                    return Verdict::Pass(packet.split_off(HEADERS));
                }
                Found::Lost => {
                    self.follower.stream.calls.lose();
                    return Verdict::Close;
                }
                Found::Reclaim { at } => {
                    let seq = seq.wrapping_add(at - HEADERS as u32);
                    let offset = seq.wrapping_sub(self.isn).wrapping_sub(1);
                    let calls = self.follower.stream.calls;
                    let Some(value) = self.decide(&calls, offset as usize) else {
                        self.follower.take_back();
                        return Verdict::Drop;
                    };
                    packet[at as usize] = value;
                }
            }
        }
    }

    pub fn datagram(&mut self, payload: &[u8]) -> Verdict {
        let mut packet = [&[0; HEADERS], payload].concat();
        let mut calls = Calls::default();
        calls.begin_datagram(HEADERS as u32, packet.len() as u32);
        loop {
            match calls.step(packet.as_slice()) {
                Found::More => {}
                Found::End => return Verdict::Pass(packet.split_off(HEADERS)),
                Found::Lost => return Verdict::Drop,
                Found::Reclaim { at } => match self.decide(&calls, at as usize - HEADERS) {
                    Some(value) => packet[at as usize] = value,
                    None => return Verdict::Drop,
                },
            }
        }
    }

    /// The byte that lockd must read, or `None` if it must read nothing.
    fn decide(&mut self, calls: &Calls, offset: usize) -> Option<u8> {
        let sent = calls.word;
        let grace = match self.kernel_grace.len() {
            0 => false,
            flips => self.kernel_grace[self.calls % flips],
        };
        self.calls += 1;
        let written = match (calls.is_share(), grace) {
            (true, _) | (false, true) => sent,
            (false, false) => u32::from(sent == 0),
        };
        let decided = Decided {
            xid: calls.xid,
            is_share: calls.is_share(),
            sent,
            written,
            fsid: Fsid::of_handle(&calls.handle),
        };
        self.log.insert(offset, decided);
        (!calls.is_share() || sent != 0).then_some(written as u8)
    }
}
