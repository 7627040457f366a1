//! Follows the calls of a client to lockd word by word, wherever the packets cut them. It reads
//! enough of RPC (RFC 5531) and NLM (RFC 1813 appendix II, C702) to find the `reclaim` word of a
//! LOCK or SHARE call, and the filesystem of the call.
//!
//! The grace gate runs this in the kernel, and the tests run the same code. A client's call must be
//! read as lockd reads it, or not at all, also if the client lies. Versions of lockd differ in what
//! they trust: in 6.1 and 6.12 the *contents* of an AUTH_UNIX credential decide where it ends, not
//! its length. Where contents and length disagree, the call is [`Found::Lost`].

/// `NLM_PROGRAM`.
const NLM: u32 = 100_021;
const CALL: u32 = 0;
const RPC_VERSION: u32 = 2;
const AUTH_NULL: u32 = 0;
const AUTH_UNIX: u32 = 1;

/// Procedures whose call has a `reclaim` word.
const LOCK: u32 = 2;
const LOCK_MSG: u32 = 7;
const SHARE: u32 = 20;
const NM_LOCK: u32 = 22;

/// The last-fragment bit of a record marker; the rest is the fragment's length.
const LAST_FRAGMENT: u32 = 1 << 31;
/// No opaque that lockd accepts is longer (`LM_MAXSTRLEN`, include/linux/lockd/xdr.h
/// 6.1; `XDR_MAX_NETOBJ`).
const OPAQUE_MAX: u32 = 1024;
/// `UNX_MAXNODENAME`, rounded up; `UNX_NGROUPS`.
const MACHINE_MAX: u32 = 255;
const GROUPS_MAX: u32 = 16;

/// How many words of a file handle are kept: its header and the longest filesystem ID.
pub const HANDLE_WORDS: usize = 8;

/// A filesystem as in knfsd's file handles: the kind of filesystem ID, then the ID in the byte order
/// of the wire, then zeros (fs/nfsd/nfsfh.h, 6.1 to 7.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Fsid(pub [u32; HANDLE_WORDS]);

impl Fsid {
    /// How many words a filesystem ID of this kind has; `None` if knfsd has no such kind.
    #[inline(always)]
    pub const fn words_of(kind: u8) -> Option<usize> {
        Some(match kind {
            // `fsid=` of the export.
            1 => 1,
            // Device and inode; inode and half a UUID; half a UUID.
            0 | 3 | 4 | 5 => 2,
            // Major, minor, inode.
            2 => 3,
            // A UUID, and with a 64-bit inode before it.
            6 => 4,
            7 => 6,
            _ => return None,
        })
    }

    /// The filesystem of a handle, from its first words in the byte order of the wire. `None` if the
    /// handle is not one of knfsd's.
    #[inline(always)]
    pub fn of_handle(words: &[u32; HANDLE_WORDS]) -> Option<Self> {
        let [version, _, kind, _] = words[0].to_ne_bytes();
        if version != 1 {
            return None;
        }
        let ids = Self::words_of(kind)?;
        let mut fsid = [0; HANDLE_WORDS];
        fsid[0] = kind as u32;
        let mut i = 1;
        while i < HANDLE_WORDS {
            if i <= ids {
                fsid[i] = words[i];
            }
            i += 1;
        }
        Some(Fsid(fsid))
    }
}

/// What the next word of a call is. Numbers rather than an enum: the kernel's
/// verifier sees memory, not types.
mod step {
    pub const MARKER: u32 = 0;
    pub const XID: u32 = 1;
    pub const TYPE: u32 = 2;
    pub const RPC_VERSION: u32 = 3;
    pub const PROGRAM: u32 = 4;
    pub const VERSION: u32 = 5;
    pub const PROCEDURE: u32 = 6;
    pub const CRED_FLAVOR: u32 = 7;
    pub const CRED_LEN: u32 = 8;
    pub const MACHINE_LEN: u32 = 9;
    pub const GROUPS: u32 = 10;
    pub const VERF_FLAVOR: u32 = 11;
    pub const VERF_LEN: u32 = 12;
    pub const COOKIE_LEN: u32 = 13;
    pub const CALLER_LEN: u32 = 14;
    pub const HANDLE_LEN: u32 = 15;
    pub const HANDLE: u32 = 16;
    pub const OWNER_LEN: u32 = 17;
    pub const RECLAIM: u32 = 18;
    /// The rest of this record is skipped.
    pub const REST: u32 = 19;
    pub const LOST: u32 = 20;
}

/// Where bytes come from: a packet, or a slice.
pub trait Bytes {
    /// The big-endian word at offset `at`; `None` past the end.
    fn word(&self, at: u32) -> Option<u32>;
    /// The byte at offset `at`; `None` past the end.
    fn byte(&self, at: u32) -> Option<u8>;
}

impl Bytes for [u8] {
    fn word(&self, at: u32) -> Option<u32> {
        let bytes = self.get(at as usize..at as usize + 4)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    }

    fn byte(&self, at: u32) -> Option<u8> {
        self.get(at as usize).copied()
    }
}

/// What a step found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing yet; there is more to read.
    More,
    /// All bytes up to `end` are read.
    End,
    /// The last byte of a `reclaim` word, at this offset; its value is in
    /// [`Calls::word`]. The bytes before it were zero, so writing 0 or 1 here
    /// decides what lockd reads.
    Reclaim {
        /// Offset of that byte.
        at: u32,
    },
    /// lockd may read calls that we cannot: nothing more of this stream is read.
    Lost,
}

/// The state of a reader of calls, between two bytes of a stream or datagram.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Calls {
    /// Offset of the next byte in what is being read.
    pub at: u32,
    /// Offset at which it ends.
    pub end: u32,
    /// Bytes of the record that are still to come.
    left: u32,
    /// Bytes to pass over before the next word.
    skip: u32,
    /// The bytes of the current word that are read so far; the last word if that is complete.
    pub word: u32,
    /// How many bytes of the current word are read, 0 to 3.
    have: u32,
    step: u32,
    /// Whether records have markers: 1 for TCP, 0 for UDP.
    marked: u32,
    /// The RPC transaction ID of the current call, in host byte order.
    pub xid: u32,
    version: u32,
    /// The NLM procedure of the current call.
    pub procedure: u32,
    /// Bytes of the credential's body after the part that is read.
    body: u32,
    handle_at: u32,
    handle_len: u32,
    /// The first words of the call's file handle, in the byte order of the wire; zeros after its
    /// end.
    pub handle: [u32; HANDLE_WORDS],
}

impl Calls {
    /// The beginning of a TCP connection.
    pub const STREAM: Self = Calls {
        at: 0,
        end: 0,
        left: 4,
        skip: 0,
        word: 0,
        have: 0,
        step: step::MARKER,
        marked: 1,
        xid: 0,
        version: 0,
        procedure: 0,
        body: 0,
        handle_at: 0,
        handle_len: 0,
        handle: [0; HANDLE_WORDS],
    };

    /// Starts reading one UDP payload, from offset `at` to `end` of a packet.
    #[inline(always)]
    pub fn begin_datagram(&mut self, at: u32, end: u32) {
        self.at = at;
        self.end = end;
        self.left = end.saturating_sub(at);
        self.skip = 0;
        self.have = 0;
        self.step = step::XID;
        self.marked = 0;
    }

    /// Whether the current call is a SHARE. If a `reclaim` word was found and this is false, it is
    /// a LOCK.
    #[inline(always)]
    pub fn is_share(&self) -> bool {
        self.procedure == SHARE
    }

    /// Whether the stream was given up: no more of it is read.
    #[inline(always)]
    pub fn is_lost(&self) -> bool {
        self.step == step::LOST
    }

    /// Gives the stream up.
    #[inline(always)]
    pub fn lose(&mut self) {
        self.step = step::LOST;
    }

    /// Skips some bytes, or reads one word or a part of it. Call it until it returns something other
    /// than [`Found::More`].
    #[inline(always)]
    pub fn step<B: Bytes + ?Sized>(&mut self, bytes: &B) -> Found {
        if self.step == step::LOST {
            return Found::Lost;
        }
        let here = self.end.wrapping_sub(self.at);
        if self.at >= self.end {
            return Found::End;
        }
        if self.left == 0 {
            if self.marked == 0 {
                // Bytes beyond the datagram are none of lockd's.
                self.at = self.end;
                return Found::End;
            }
            self.step = step::MARKER;
            self.left = 4;
            self.skip = 0;
        }
        // The record has no room for another word: lockd does not find one either.
        if self.have == 0 && self.skip == 0 && self.left < 4 {
            self.step = step::REST;
        }
        if self.step == step::REST {
            self.skip = self.left;
        }
        if self.skip > 0 {
            let mut pass = self.skip;
            if pass > here {
                pass = here;
            }
            // A field that is longer than its record ends with the record.
            if pass > self.left {
                pass = self.left;
            }
            self.skip -= pass;
            self.left -= pass;
            self.at += pass;
            if self.left == 0 {
                self.skip = 0;
            }
            return Found::More;
        }
        if self.have == 0 && here >= 4 {
            let Some(word) = bytes.word(self.at) else {
                return self.lost();
            };
            self.word = word;
            self.at += 4;
            self.left -= 4;
        } else {
            let Some(byte) = bytes.byte(self.at) else {
                return self.lost();
            };
            // After four of these, nothing is left of the previous word.
            self.word = self.word << 8 | byte as u32;
            self.at += 1;
            self.left -= 1;
            self.have += 1;
            if self.have < 4 {
                return Found::More;
            }
            self.have = 0;
        }
        self.take()
    }

    #[inline(always)]
    fn lost(&mut self) -> Found {
        self.step = step::LOST;
        Found::Lost
    }

    /// Skips the padded body of an opaque, whose length is the current word, and `more` bytes, and
    /// continues with the step `next`.
    #[inline(always)]
    fn opaque(&mut self, more: u32, next: u32) -> Found {
        if self.word > OPAQUE_MAX {
            return self.lost();
        }
        self.skip = ((self.word + 3) & !3) + more;
        self.step = next;
        Found::More
    }

    /// Whether the current call has a `reclaim` word.
    #[inline(always)]
    fn reclaims(&self) -> bool {
        matches!(self.procedure, LOCK | LOCK_MSG | NM_LOCK | SHARE)
    }

    /// Acts on a whole word.
    #[inline(always)]
    fn take(&mut self) -> Found {
        let word = self.word;
        let next = match self.step {
            step::MARKER => {
                // lockd joins fragments; we do not. No client is known to send them.
                if word & LAST_FRAGMENT == 0 {
                    return self.lost();
                }
                self.left = word & !LAST_FRAGMENT;
                step::XID
            }
            step::XID => {
                self.xid = word;
                step::TYPE
            }
            step::TYPE if word == CALL => step::RPC_VERSION,
            step::RPC_VERSION if word == RPC_VERSION => step::PROGRAM,
            step::PROGRAM if word == NLM => step::VERSION,
            step::VERSION if matches!(word, 1 | 3 | 4) => {
                self.version = word;
                step::PROCEDURE
            }
            step::PROCEDURE => {
                self.procedure = word;
                if !self.reclaims() {
                    step::REST
                } else {
                    step::CRED_FLAVOR
                }
            }
            step::CRED_FLAVOR => {
                if word != AUTH_NULL && word != AUTH_UNIX {
                    return self.lost();
                }
                self.body = word;
                step::CRED_LEN
            }
            step::CRED_LEN => {
                if self.body == AUTH_NULL {
                    if word != 0 {
                        return self.lost();
                    }
                    step::VERF_FLAVOR
                } else {
                    // A stamp and the machine name's length come first.
                    if word < 8 {
                        return self.lost();
                    }
                    self.body = word - 8;
                    self.skip = 4;
                    step::MACHINE_LEN
                }
            }
            step::MACHINE_LEN => {
                // The name, uid, gid, and the number of groups.
                let room = ((word.min(MACHINE_MAX) + 3) & !3) + 12;
                if word > MACHINE_MAX || room > self.body {
                    return self.lost();
                }
                self.body -= room;
                self.skip = room - 4;
                step::GROUPS
            }
            step::GROUPS => {
                if word > GROUPS_MAX || self.body != word * 4 {
                    return self.lost();
                }
                self.skip = self.body;
                step::VERF_FLAVOR
            }
            step::VERF_FLAVOR if word == AUTH_NULL => step::VERF_LEN,
            step::VERF_LEN if word == 0 => step::COOKIE_LEN,
            step::VERF_FLAVOR | step::VERF_LEN => return self.lost(),
            // A LOCK has `block` and `exclusive` after it.
            step::COOKIE_LEN => {
                let more = if self.is_share() { 0 } else { 8 };
                return self.opaque(more, step::CALLER_LEN);
            }
            step::CALLER_LEN => return self.opaque(0, step::HANDLE_LEN),
            step::HANDLE_LEN => {
                if word > OPAQUE_MAX {
                    return self.lost();
                }
                self.handle = [0; HANDLE_WORDS];
                self.handle_at = 0;
                self.handle_len = (word + 3) & !3;
                if word == 0 {
                    step::OWNER_LEN
                } else {
                    step::HANDLE
                }
            }
            step::HANDLE => {
                // The wire's order in memory, whatever the machine's.
                self.handle[self.handle_at as usize % HANDLE_WORDS] = word.to_be();
                self.handle_at += 1;
                self.handle_len -= 4;
                if self.handle_at < HANDLE_WORDS as u32 && self.handle_len > 0 {
                    step::HANDLE
                } else {
                    self.skip = self.handle_len;
                    step::OWNER_LEN
                }
            }
            // svid, offset and length of a LOCK; mode and access of a SHARE.
            step::OWNER_LEN => {
                let more = match (self.is_share(), self.version) {
                    (true, _) => 8,
                    (false, 4) => 20,
                    (false, _) => 12,
                };
                let found = self.opaque(more, step::RECLAIM);
                // lockd never looks at the `reclaim` of a SHARE (6.1 and 6.12,
                // fs/lockd/xdr4.c) and so takes one that ends before it.
                if self.left < self.skip + 4 {
                    return self.lost();
                }
                return found;
            }
            step::RECLAIM => {
                self.step = step::REST;
                // Earlier segments may have passed with the first three bytes.
                if word > 0xff {
                    return self.lost();
                }
                return Found::Reclaim { at: self.at - 1 };
            }
            // A reply, another program, or a version that lockd does not have.
            _ => step::REST,
        };
        self.step = next;
        Found::More
    }
}

crate::plain!(Fsid: 4 * HANDLE_WORDS);
