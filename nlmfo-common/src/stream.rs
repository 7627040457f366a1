//! One client's TCP connection to lockd, as the gate follows it from its SYN on.
//!
//! The gate reads a segment before TCP does, and TCP may discard it: for its checksum, its
//! timestamp, its acknowledgement number. Its bytes then come again, and may be others.
//! What counts is therefore what TCP has accepted ([`Tcp`]): the gate keeps the states at
//! which the last segments began, and goes back to the one where TCP stands. It lets no
//! second copy of a byte through while the first one may still be accepted.

use crate::nlm_call::Calls;

/// Nanoseconds after which a segment that the gate let through has reached its socket, or
/// never will. Less than TCP's shortest retransmission timeout (200 ms), so that it does
/// not hold up a client that sends a lost segment again.
pub const SETTLED: u64 = 100_000_000;

/// Segments on their way to TCP whose beginnings are kept. If an older one is lost after
/// the gate, the connection is closed.
pub const SEGMENTS: usize = 4;

/// What TCP has accepted of a connection. It is read before the segment at hand reaches TCP, and
/// only grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tcp {
    /// Whether the handshake is over. If not, nothing is accepted yet.
    pub is_open: bool,
    /// Sequence number of the first byte that is not accepted yet (`rcv_nxt`).
    pub accepted: u32,
    /// Segments wait in the socket's backlog: they may be accepted or discarded.
    pub is_busy: bool,
    /// Bytes after a gap are kept, to be accepted when the gap is filled.
    pub has_gap: bool,
}

/// Where a segment lies in relation to what was read before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It comes too early, or a copy of it may still be accepted: TCP sends it again.
    Early,
    /// TCP has all of it and discards it.
    Old,
    /// It continues where the reader stands, after this many bytes that TCP discards.
    New(u32),
    /// The reader has read further than TCP has accepted: it has to go back.
    Anew {
        /// The kept state to go back to, for [`Follower::go_back`].
        kept: usize,
        /// Bytes of the segment that TCP discards.
        skip: u32,
    },
    /// It cannot be known what TCP will accept.
    Lost,
}

/// The state of a reader between two segments.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The reader of the calls: the byte at `next` is the next one that it reads.
    pub calls: Calls,
    /// Sequence number of the first byte that was not read yet.
    pub next: u32,
    /// 0 if this is not a state of the current connection.
    is_valid: u32,
}

/// The reader of one connection, and its states before the last segments. All zeros until
/// [`Follower::begin`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Follower {
    /// The current state.
    pub stream: Stream,
    /// The states before each of the last segments.
    kept: [Stream; SEGMENTS],
    /// Index of the oldest of them, which is overwritten next.
    oldest: u32,
    /// Sequence number of the connection's first byte.
    first: u32,
    /// When the last segment was let through.
    passed_at: u64,
}

/// Whether one sequence number comes before another one (RFC 9293, 3.4).
#[inline(always)]
fn is_before(seq: u32, other: u32) -> bool {
    (seq.wrapping_sub(other) as i32) < 0
}

impl Follower {
    /// Starts over after a SYN with this sequence number.
    #[inline(always)]
    pub fn begin(&mut self, syn: u32) {
        self.first = syn.wrapping_add(1);
        self.stream.calls = Calls::STREAM;
        self.stream.next = self.first;
        self.stream.is_valid = 1;
        self.forget();
    }

    /// Marks all kept states invalid.
    #[inline(always)]
    fn forget(&mut self) {
        for kept in &mut self.kept {
            kept.is_valid = 0;
        }
    }

    /// Where a segment lies. `len` is at least 1, `now` in nanoseconds.
    #[inline(always)]
    pub fn place(&self, seq: u32, len: u32, now: u64, tcp: &Tcp) -> Place {
        let next = self.stream.next;
        let accepted = match tcp.is_open {
            true => tcp.accepted,
            false => self.first,
        };
        if tcp.is_open && !is_before(accepted, seq.wrapping_add(len)) {
            return Place::Old;
        }
        if is_before(next, seq) {
            return Place::Early;
        }
        // TCP has accepted bytes that we have not read.
        if is_before(next, accepted) {
            return Place::Lost;
        }
        if seq == next {
            return Place::New(0);
        }
        // It comes again.
        if !tcp.is_open && is_before(seq, accepted) {
            return Place::Early;
        }
        let skip = accepted.wrapping_sub(seq);
        if accepted == next {
            return Place::New(skip);
        }
        let is_settled = now.wrapping_sub(self.passed_at) >= SETTLED && !tcp.is_busy;
        if !is_settled || is_before(accepted, seq) {
            return Place::Early;
        }
        if tcp.has_gap {
            return Place::Lost;
        }
        let mut kept = 0;
        while kept < SEGMENTS {
            if self.kept[kept].is_valid != 0 && self.kept[kept].next == accepted {
                return Place::Anew { kept, skip };
            }
            kept += 1;
        }
        Place::Lost
    }

    /// Goes back to a kept state, as [`Place::Anew`] says.
    #[inline(always)]
    pub fn go_back(&mut self, kept: usize) {
        // The verifier needs the modulo: it forgets a comparison of a copy. The compiler would drop it
        // if it saw that it changes nothing.
        self.stream = self.kept[core::hint::black_box(kept) % SEGMENTS];
        self.forget();
    }

    /// Keeps the state before the segment that is read next.
    #[inline(always)]
    pub fn keep(&mut self) {
        self.kept[self.oldest as usize % SEGMENTS] = self.stream;
    }

    /// The segment was read up to the sequence number `end` and is let through to TCP.
    #[inline(always)]
    pub fn pass(&mut self, end: u32, now: u64) {
        self.stream.next = end;
        self.oldest = self.oldest.wrapping_add(1);
        self.passed_at = now;
    }

    /// The segment was read but is dropped: restores the state before it.
    #[inline(always)]
    pub fn take_back(&mut self) {
        self.stream = self.kept[self.oldest as usize % SEGMENTS];
    }
}
