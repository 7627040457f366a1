//! One client's TCP connection to lockd, as the gate follows it from its SYN on:
//! each byte is looked at once, in order, and what was decided on a byte is told of
//! every copy of it that comes later.

use crate::nlm_call::Calls;

/// Bytes decided on that are remembered: calls with a `reclaim` word that a client
/// may have on their way, unacknowledged, before its connection is closed.
pub const REWRITES: usize = 64;

/// A byte that was decided on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// Its sequence number.
    pub seq: u32,
    /// What the gate wants to know when it comes again.
    pub value: u32,
}

/// How a segment lies to what was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Bytes before it are missing. TCP sends them again, and then this.
    Ahead,
    /// So many of its bytes were seen before: all of them, if that is its length.
    Seen(u32),
    /// It repeats bytes of which it is no longer known what was decided on them.
    Forgotten,
}

/// A connection. All zeros but for [`Stream::begin`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    pub calls: Calls,
    /// Sequence number of the first byte that was not seen yet.
    pub next: u32,
    /// Bytes decided on so far, remembered or not; the next one's place in the ring.
    pub decided: u32,
    /// A segment that begins before this one may repeat a byte that is forgotten.
    /// Never more than [`REACH`] before `next`.
    horizon: u32,
    pad: u32,
}

/// The bytes decided on last, the oldest overwritten by the newest.
pub type Rewrites = [Rewrite; REWRITES];

/// No TCP window is larger (RFC 7323), so that nothing older is sent again.
const REACH: u32 = 1 << 30;

/// Whether one sequence number comes before another one (RFC 9293, 3.4).
#[inline(always)]
fn is_before(seq: u32, other: u32) -> bool {
    (seq.wrapping_sub(other) as i32) < 0
}

impl Stream {
    /// Starts over after a SYN with this sequence number.
    #[inline(always)]
    pub fn begin(&mut self, syn: u32) {
        self.calls = Calls::STREAM;
        self.next = syn.wrapping_add(1);
        self.decided = 0;
        self.horizon = self.next.wrapping_sub(REACH);
    }

    /// Where a segment of `len` bytes lies.
    #[inline(always)]
    pub fn place(&self, seq: u32, len: u32) -> Place {
        if is_before(self.next, seq) {
            return Place::Ahead;
        }
        let seen = self.next.wrapping_sub(seq);
        if seen > 0 && is_before(seq, self.horizon) {
            return Place::Forgotten;
        }
        Place::Seen(if seen < len { seen } else { len })
    }

    /// The segment is read and goes on to lockd.
    #[inline(always)]
    pub fn pass(&mut self, seq: u32, len: u32) {
        let end = seq.wrapping_add(len);
        if is_before(self.next, end) {
            self.next = end;
        }
        if self.next.wrapping_sub(self.horizon) > REACH {
            self.horizon = self.next.wrapping_sub(REACH);
        }
    }

    /// The segment is read but dropped: all is as `before` it, and what was decided
    /// in it is decided again when it comes again. What it pushed out of the ring
    /// stays forgotten.
    #[inline(always)]
    pub fn take_back(&mut self, before: &Stream) {
        self.calls = before.calls;
        self.next = before.next;
        self.decided = before.decided;
        if is_before(self.next, self.horizon) {
            self.horizon = self.next;
        }
    }

    /// Remembers the byte at `seq`.
    #[inline(always)]
    pub fn remember(&mut self, rewrites: &mut Rewrites, seq: u32, value: u32) {
        let slot = &mut rewrites[self.decided as usize % REWRITES];
        // What a dropped segment left in a slot is this very byte or one after it,
        // and will be decided on again: nothing is forgotten by that.
        if self.decided >= REWRITES as u32 && is_before(slot.seq, seq) {
            self.horizon = slot.seq.wrapping_add(1);
        }
        *slot = Rewrite { seq, value };
        // Never back to few: the ring stays full.
        self.decided = match self.decided.checked_add(1) {
            Some(decided) => decided,
            None => 2 * REWRITES as u32,
        };
    }

    /// A remembered byte, as its offset in a segment that begins at `seq` and whose
    /// first `seen` bytes were seen before; `index` is below [`REWRITES`].
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
        // The verifier wants the mask, as it loses what a comparison told of a copy; the
        // compiler would leave it out if it saw that it changes nothing.
        let rewrite = rewrites[core::hint::black_box(index) as usize % REWRITES];
        let offset = rewrite.seq.wrapping_sub(seq);
        (offset < seen).then_some((offset, rewrite.value))
    }
}
