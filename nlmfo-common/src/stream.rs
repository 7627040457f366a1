//! One client's TCP connection to lockd, as the gate follows it from its SYN on:
//! each byte is looked at once, in order, and what was written over a byte is
//! written over every copy of it that comes later.

use crate::nlm_call::Calls;

/// Rewritten bytes that are remembered: calls with a `reclaim` word that a client
/// may have on their way, unacknowledged, before its connection is closed.
pub const REWRITES: usize = 64;

/// A byte that was decided on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Its sequence number.
    pub seq: u32,
    /// What lockd shall read.
    pub value: u32,
}

/// How a segment lies to what was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Bytes before it are missing. TCP sends them again, and then this.
    Ahead,
    /// So many of its bytes were seen before: all of them, if that is its length.
    Seen(u32),
    /// It repeats bytes of which it is no longer known what was written over them.
    Forgotten,
}

/// A connection. All zeros but for [`Stream::begin`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    pub calls: Calls,
    /// Sequence number of the first byte that was not seen yet.
    pub next: u32,
    /// Bytes decided on so far, remembered or not.
    pub decided: u32,
    /// A segment that begins before this one repeats a byte that is forgotten.
    horizon: u32,
    pad: u32,
}

/// The bytes decided on last, the oldest overwritten by the newest.
pub type Rewrites = [Rewrite; REWRITES];

impl Stream {
    /// Starts over after a SYN with this sequence number.
    #[inline(always)]
    pub fn begin(&mut self, syn: u32) {
        self.calls = Calls::STREAM;
        self.next = syn.wrapping_add(1);
        self.decided = 0;
        self.horizon = self.next;
    }

    /// Where a segment of `len` bytes lies.
    #[inline(always)]
    pub fn place(&self, seq: u32, len: u32) -> Place {
        let seen = self.next.wrapping_sub(seq);
        if (seen as i32) < 0 {
            return Place::Ahead;
        }
        if seen > 0 && (seq.wrapping_sub(self.horizon) as i32) < 0 && self.forgets() {
            return Place::Forgotten;
        }
        Place::Seen(if seen < len { seen } else { len })
    }

    #[inline(always)]
    fn forgets(&self) -> bool {
        self.decided > REWRITES as u32
    }

    /// Remembers what is written over the byte at `seq`.
    #[inline(always)]
    pub fn remember(&mut self, rewrites: &mut Rewrites, seq: u32, value: u32) {
        let slot = &mut rewrites[self.decided as usize % REWRITES];
        if self.decided >= REWRITES as u32 {
            self.horizon = slot.seq.wrapping_add(1);
        }
        *slot = Rewrite { seq, value };
        // Never back to few: what is forgotten stays forgotten.
        self.decided = match self.decided.checked_add(1) {
            Some(decided) => decided,
            None => 2 * REWRITES as u32,
        };
    }

    /// The `index`th remembered byte, oldest first, as its offset in a segment that
    /// begins at `seq` and whose first `seen` bytes were seen before.
    #[inline(always)]
    pub fn repeated(
        &self,
        rewrites: &Rewrites,
        index: u32,
        seq: u32,
        seen: u32,
    ) -> Option<(u32, u32)> {
        if index >= self.decided || index >= REWRITES as u32 {
            return None;
        }
        let oldest = if self.forgets() { self.decided } else { 0 };
        let rewrite = rewrites[oldest.wrapping_add(index) as usize % REWRITES];
        let offset = rewrite.seq.wrapping_sub(seq);
        (offset < seen).then_some((offset, rewrite.value))
    }
}
