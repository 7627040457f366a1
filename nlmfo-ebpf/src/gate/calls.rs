//! Reads the calls in a packet and writes their `reclaim` words.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::macros::map;
use aya_ebpf::maps::PerCpuArray;
use nlmfo_common::gate::{Connection, Flow, Note, NoteKey};
use nlmfo_common::nlm_call::{Calls, Found, Fsid};

use crate::kernel::in_grace;
use crate::maps::{NOTES, SCOPES, count};
use crate::packet::{Packet, Skb, UDP};

/// Maximum number of parser steps in one packet: one per word.
const STEPS: u32 = 1 << 20;

/// The value that replaces the `reclaim` word that the client sent.
///
/// A reclaim through an address without a window is left alone, and lockd refuses it.
#[inline(always)]
fn word_for_lockd(is_reclaim: bool, is_in_window: bool, in_grace: bool) -> u32 {
    (is_reclaim == in_grace || (!is_in_window && !in_grace)) as u32
}

/// The verdict on a packet.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outcome(u32);

impl Outcome {
    pub const PASS: Self = Outcome(0);
    pub const DROP: Self = Outcome(1);
    pub const LOST: Self = Outcome(2);
}

const GO_ON: i64 = 0;
const STOP: i64 = 1;

/// The current packet, for the callbacks. In a map, not on the stack, where the verifier would
/// track every value.
#[repr(C)]
pub struct Work {
    pub calls: Calls,
    pub flow: Flow,
    pub now: u64,
    pub opened: u64,
    pub net: u64,
    /// The priority to set on packets that pass.
    pub decided: u32,
    pub is_in_window: u32,
    pub is_in_scope: u32,
    proto: u32,
    l4: u32,
    outcome: Outcome,
}

/// The current packet.
#[map]
pub static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

impl Work {
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

/// The context of a callback: only pointers, which stay the same from step to step.
#[repr(C)]
struct Reading {
    skb: Skb,
    work: *mut Work,
    connection: *mut Connection,
}

/// Reads the calls of a UDP payload from `work.calls` on.
#[inline(always)]
pub fn read_datagram(skb: Skb, work: &mut Work) -> Outcome {
    let reading = Reading {
        skb,
        work,
        connection: core::ptr::null_mut(),
    };
    run(STEPS, datagram_step, &reading, work)
}

/// Reads the calls of a segment from the position of the connection's reader on.
#[inline(always)]
pub fn read_stream(skb: Skb, work: &mut Work, connection: &mut Connection) -> Outcome {
    let reading = Reading {
        skb,
        work,
        connection,
    };
    run(STEPS, stream_step, &reading, work)
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
            Decision::Write(value) => match work.rewrite(skb, at, work.calls.word, value) {
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
    let calls = &mut connection.follower.stream.calls;
    match calls.step(&skb) {
        Found::More => GO_ON,
        Found::End => STOP,
        Found::Lost => work.stop(Outcome::LOST),
        Found::Reclaim { at } => match decide(work, calls) {
            Decision::Pass => GO_ON,
            Decision::Drop => work.stop(Outcome::DROP),
            Decision::Write(value) => match work.rewrite(skb, at, calls.word, value) {
                true => GO_ON,
                false => work.stop(Outcome::DROP),
            },
        },
    }
}

enum Decision {
    /// Not a call that concerns us.
    Pass,
    Drop,
    /// The word to write.
    Write(u32),
}

/// The verdict on a call with a `reclaim` word.
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
    let before = noted(&key, work.opened);
    // SAFETY: an element of our map; whole words are read and written.
    let before = before.map(|note| unsafe { &mut *note });
    let is_udp = work.proto == UDP as u32;
    let is_reclaim = match before {
        Some(&mut Note { sent, .. }) if is_udp => sent != 0,
        _ => calls.word != 0,
    };
    let is_repeated = before.is_some();
    let value = word_for_lockd(is_reclaim, is_in_window, in_grace);
    if let Some(note) = before {
        note.sent = is_reclaim as u32;
        note.written = value;
    } else {
        let note = Note {
            at: work.now,
            sent: is_reclaim as u32,
            written: value,
            ..Note::default()
        };
        if NOTES.insert(key, note, 0).is_err() {
            return Decision::Drop;
        }
    }
    count(&work.flow.vip, |gated| {
        match (is_repeated, in_grace, is_reclaim) {
            (true, ..) => gated.repeated += 1,
            (false, true, _) => gated.left += 1,
            (false, false, true) => gated.reclaims += 1,
            (false, false, false) => gated.new += 1,
        }
    });
    Decision::Write(value)
}

/// The note of the same call from an earlier pass: the client sends it again, and the kernel's
/// own grace may have started or ended in between.
#[inline(always)]
pub fn noted(key: &NoteKey, opened: u64) -> Option<*mut Note> {
    let note = NOTES.get_ptr_mut(key)?;
    // SAFETY: an element of our map; a word is read whole.
    (unsafe { (*note).at } >= opened).then_some(note)
}

#[inline(always)]
fn is_of_scope(calls: &Calls) -> bool {
    // SAFETY: whether there is such an element is all that is asked.
    Fsid::of_handle(&calls.handle).is_some_and(|fsid| unsafe { SCOPES.get(fsid) }.is_some())
}
