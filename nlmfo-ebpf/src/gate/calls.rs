//! Reading the calls of a packet and writing their `reclaim` words.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use nlmfo_common::gate::{Connection, Flow, Note, NoteKey};
use nlmfo_common::nlm_call::{Calls, Found, Fsid};
use nlmfo_common::stream::REWRITES;

use crate::classifier::count;
use crate::kernel::in_grace;
use crate::maps::{NOTES, SCOPES, WORK};
use crate::packet::{Packet, Skb, UDP};

/// Steps of the parser in one packet: a word each at worst, and no packet has more.
const STEPS: u32 = 1 << 20;

/// Marks the remembered word of a call that came through another address than a
/// window's, about a filesystem of the scope.
const OF_SCOPE: u32 = 0x100;

/// What lockd shall read in place of the `reclaim` word that the client sent. Decided
/// anew each time that its bytes come by: the kernel's own grace may have begun or
/// ended since.
///
/// Through another address than a window's a reclaim stays what it is, and lockd
/// refuses it.
#[inline(always)]
fn word_for_lockd(sent: u32, in_grace: bool) -> u32 {
    let is_reclaim = sent & !OF_SCOPE != 0;
    let is_of_scope = sent & OF_SCOPE != 0;
    (is_reclaim == in_grace || (is_of_scope && !in_grace)) as u32
}

/// What becomes of a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outcome(u32);

impl Outcome {
    pub const PASS: Self = Outcome(0);
    pub const DROP: Self = Outcome(1);
    pub const LOST: Self = Outcome(2);
}

const GO_ON: i64 = 0;
const STOP: i64 = 1;

/// The packet at hand, for the callbacks: in a map and not on the stack, where the
/// verifier would follow every value of it.
#[repr(C)]
pub struct Work {
    pub calls: Calls,
    pub flow: Flow,
    now: u64,
    pub opened: u64,
    pub net: u64,
    pub is_in_window: u32,
    pub is_in_scope: u32,
    proto: u32,
    l4: u32,
    /// Sequence number of the packet's byte 0.
    pub first: u32,
    /// Bytes of the segment that were seen before, and where it begins.
    pub seen: u32,
    pub seq: u32,
    outcome: Outcome,
}

impl Work {
    #[inline(always)]
    pub fn of_this_cpu() -> Option<&'static mut Self> {
        // SAFETY: this CPU's value; classifiers on a CPU run one after another.
        WORK.get_ptr_mut(0).map(|work| unsafe { &mut *work })
    }

    #[inline(always)]
    pub fn begin(&mut self, packet: &Packet, now: u64) {
        self.now = now;
        self.proto = packet.proto as u32;
        self.l4 = packet.l4;
        self.outcome = Outcome::PASS;
    }

    fn stop(&mut self, outcome: Outcome) -> i64 {
        self.outcome = outcome;
        STOP
    }

    #[inline(always)]
    fn note_key(&self, xid: u32) -> NoteKey {
        NoteKey {
            client: self.flow.client,
            port: self.flow.client_port,
            pad: 0,
            xid,
        }
    }

    fn rewrite(&self, skb: Skb, at: u32, old: u32, new: u32) -> bool {
        skb.rewrite(self.proto as u16, self.l4, at, old as u8, new as u8)
    }
}

/// What a callback gets: pointers only, which do not change from step to step.
#[repr(C)]
struct Reading {
    skb: Skb,
    work: *mut Work,
    connection: *mut Connection,
}

/// Reads the calls of a UDP payload, from where `work.calls` stands.
#[inline(always)]
pub fn read_datagram(skb: Skb, work: &mut Work) -> Outcome {
    let reading = Reading {
        skb,
        work,
        connection: core::ptr::null_mut(),
    };
    run(STEPS, datagram_step, &reading, work)
}

/// Reads the calls of a segment, from where `connection.stream.calls` stands.
#[inline(always)]
pub fn read_stream(skb: Skb, work: &mut Work, connection: &mut Connection) -> Outcome {
    let reading = Reading {
        skb,
        work,
        connection,
    };
    run(STEPS, stream_step, &reading, work)
}

/// Writes what was decided over the bytes of a segment that were seen before.
#[inline(always)]
pub fn repeat(skb: Skb, work: &mut Work, connection: &mut Connection) -> Outcome {
    let reading = Reading {
        skb,
        work,
        connection,
    };
    run(REWRITES as u32, repeat_step, &reading, work)
}

#[inline(always)]
fn run(
    steps: u32,
    step: extern "C" fn(u64, *mut c_void) -> i64,
    reading: &Reading,
    work: &Work,
) -> Outcome {
    // SAFETY: the callback has the helper's signature, and takes a `Reading`.
    unsafe {
        bpf_loop(
            steps,
            step as *mut c_void,
            (&raw const *reading).cast_mut().cast(),
            0,
        );
    }
    work.outcome
}

extern "C" fn datagram_step(_index: u64, reading: *mut c_void) -> i64 {
    // SAFETY: `run` hands over a `Reading`, whose pointers are to our map values.
    let (skb, work) = unsafe {
        let reading = &*reading.cast::<Reading>();
        (reading.skb, &mut *reading.work)
    };
    match work.calls.step(&skb) {
        Found::More => GO_ON,
        Found::End => STOP,
        Found::Lost => work.stop(Outcome::DROP),
        Found::Reclaim { at } => match decide(work, &work.calls) {
            Decision::Pass => GO_ON,
            Decision::Drop => work.stop(Outcome::DROP),
            Decision::Write { value, .. } => match work.rewrite(skb, at, work.calls.word, value) {
                true => GO_ON,
                false => work.stop(Outcome::DROP),
            },
        },
    }
}

extern "C" fn stream_step(_index: u64, reading: *mut c_void) -> i64 {
    // SAFETY: `run` hands over a `Reading`, whose pointers are to our map values.
    let (skb, work, connection) = unsafe {
        let reading = &*reading.cast::<Reading>();
        (reading.skb, &mut *reading.work, &mut *reading.connection)
    };
    let stream = &mut connection.stream;
    match stream.calls.step(&skb) {
        Found::More => GO_ON,
        Found::End => STOP,
        Found::Lost => work.stop(Outcome::LOST),
        Found::Reclaim { at } => {
            let calls = &stream.calls;
            let (sent, value) = match decide(work, calls) {
                Decision::Pass => return GO_ON,
                Decision::Drop => return work.stop(Outcome::DROP),
                Decision::Write { sent, value } => (sent, value),
            };
            if !work.rewrite(skb, at, calls.word, value) {
                return work.stop(Outcome::DROP);
            }
            stream.remember(&mut connection.rewrites, work.first.wrapping_add(at), sent);
            GO_ON
        }
    }
}

extern "C" fn repeat_step(index: u64, reading: *mut c_void) -> i64 {
    // SAFETY: `run` hands over a `Reading`, whose pointers are to our map values.
    let (skb, work, connection) = unsafe {
        let reading = &*reading.cast::<Reading>();
        (reading.skb, &mut *reading.work, &mut *reading.connection)
    };
    let Connection {
        stream, rewrites, ..
    } = connection;
    let Some((offset, sent)) = stream.repeated(rewrites, index as u32, work.seq, work.seen) else {
        return GO_ON;
    };
    let at = work.seq.wrapping_sub(work.first).wrapping_add(offset);
    let Some([old]) = skb.load::<1>(at) else {
        return work.stop(Outcome::DROP);
    };
    let Ok(in_grace) = in_grace(work.net) else {
        return work.stop(Outcome::DROP);
    };
    let value = word_for_lockd(sent, in_grace);
    match work.rewrite(skb, at, old as u32, value) {
        true => GO_ON,
        false => work.stop(Outcome::DROP),
    }
}

enum Decision {
    /// None of our business.
    Pass,
    Drop,
    /// What lockd shall read, and what is to be remembered of what was sent.
    Write {
        sent: u32,
        value: u32,
    },
}

/// What becomes of a call with a `reclaim` word.
#[inline(always)]
fn decide(work: &Work, calls: &Calls) -> Decision {
    let is_in_window = work.is_in_window != 0;
    let concerns_us = is_in_window || (work.is_in_scope != 0 && is_of_scope(calls));
    if !concerns_us {
        return Decision::Pass;
    }
    if calls.is_share() {
        if calls.word != 0 {
            return Decision::Pass;
        }
        count(&work.flow.vip, |gated| gated.shares += 1);
        return Decision::Drop;
    }
    let Ok(in_grace) = in_grace(work.net) else {
        return Decision::Drop;
    };
    let key = work.note_key(calls.xid);
    let is_udp = work.proto == UDP as u32;
    let before = match is_udp {
        true => sent_before(&key, work.opened),
        false => None,
    };
    let is_reclaim = before.unwrap_or(calls.word) != 0;
    let scope = if is_in_window { 0 } else { OF_SCOPE };
    let sent = is_reclaim as u32 | scope;
    let value = word_for_lockd(sent, in_grace);
    let note = Note {
        at: work.now,
        sent: is_reclaim as u32,
        written: value,
    };
    if NOTES.insert(key, note, 0).is_err() {
        return Decision::Drop;
    }
    count(&work.flow.vip, |gated| {
        match (before.is_some(), in_grace, is_reclaim) {
            (true, ..) => gated.repeated += 1,
            (false, true, _) => gated.left += 1,
            (false, false, true) => gated.reclaims += 1,
            (false, false, false) => gated.new += 1,
        }
    });
    Decision::Write { sent, value }
}

/// The word of this very call when it came by before: on another device of its way to
/// lockd, where another one may have been written since, or because the client sends
/// it again, maybe to a kernel that is in grace by now or is no longer. TCP's sequence
/// numbers tell that by themselves.
#[inline(always)]
fn sent_before(key: &NoteKey, opened: u64) -> Option<u32> {
    // SAFETY: an element of our map; whole words are read.
    let note = unsafe { NOTES.get(key) }?;
    (note.at >= opened).then_some(note.sent)
}

#[inline(always)]
fn is_of_scope(calls: &Calls) -> bool {
    // SAFETY: whether there is such an element is all that is asked.
    Fsid::of_handle(&calls.handle).is_some_and(|fsid| unsafe { SCOPES.get(fsid) }.is_some())
}
