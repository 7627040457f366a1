//! What a client once could do, or might do one day: one test each.

use nlmfo_common::nlm_call::{Calls, Found};
use nlmfo_common::stream::{Place, REWRITES, Stream};

use crate::model::gate::{Gate, Verdict};
use crate::model::lockd::{self, Reading, Taken};
use crate::model::path::Path;
use crate::model::wire::{self, Call, Credential, Message, procedure};

const ISN: u32 = u32::MAX - 1000;
const FIRST: u32 = ISN.wrapping_add(1);

fn message(xid: u32, procedure: u32, reclaim: bool) -> Vec<u8> {
    Message::Call(Call::of_linux(xid, procedure, reclaim)).encode()
}

fn lock(xid: u32) -> Vec<u8> {
    wire::record(&message(xid, procedure::LOCK, false))
}

fn share(xid: u32) -> Vec<u8> {
    wire::record(&message(xid, procedure::SHARE, false))
}

/// Offset of the byte that decides, in the record of a LOCK.
fn reclaim_in(record: &[u8]) -> usize {
    let Some(Taken::Lock { at, .. }) = lockd::take(&record[4..], Reading::Length) else {
        panic!("not a LOCK");
    };
    4 + at
}

/// Where the records begin, and after the last of them.
fn bounds(records: &[Vec<u8>]) -> Vec<usize> {
    let mut bounds = vec![0];
    for record in records {
        bounds.push(bounds.last().expect("not empty") + record.len());
    }
    bounds
}

/// lockd reads a SHARE up to `access` (fs/lockd/xdr4.c, `nlm4svc_decode_shareargs`,
/// 6.1 and 6.12): one that ends there is taken, and has nothing to decide by.
#[test]
fn a_share_without_a_reclaim_word_does_not_pass() {
    let mut message = message(1, procedure::SHARE, true);
    message.truncate(message.len() - 4);
    assert!(matches!(
        lockd::take(&message, Reading::Length),
        Some(Taken::Share { .. })
    ));
    assert_eq!(Gate::new(0, vec![]).datagram(&message), Verdict::Drop);

    let sent = [wire::record(&message), lock(2)].concat();
    let mut path = Path::new(&sent, ISN, vec![]);
    path.finish(1);
    assert!(path.is_closed);
}

/// What is decided in a segment that is dropped takes the place of nothing, however
/// often the segment comes.
#[test]
fn a_dropped_segment_that_comes_again_is_decided_on_once() {
    let records: Vec<_> = (0..20).map(lock).chain([share(20)]).collect();
    let bounds = bounds(&records);
    let sent = records.concat();
    let mut path = Path::new(&sent, ISN, vec![]);
    // Ten calls pass the gate, and their answers are lost.
    path.send(0, bounds[10], false);
    for _ in 0..2 * REWRITES {
        path.send(bounds[10], sent.len(), true);
    }
    assert_eq!(path.gate.stream.decided, 10);
    path.send(0, bounds[20], true);
    assert!(!path.is_closed);
    let received = path.received();
    assert_eq!(received.len(), bounds[20]);
    for (record, at) in records.iter().zip(&bounds).take(20) {
        assert_eq!(received[at + reclaim_in(record)], 1);
    }
}

/// A decision in a segment that is dropped may push an older one out of the ring: a
/// segment that would need that one must not pass.
#[test]
fn what_a_dropped_segment_pushed_out_is_forgotten() {
    for decided in [REWRITES, REWRITES + 1, 3 * REWRITES] {
        let records: Vec<_> = (0..=decided as u32).map(lock).collect();
        let sent = [records.concat(), share(9)].concat();
        let bounds = bounds(&records);
        let mut gate = Gate::new(ISN, vec![]);
        let passed = gate.segment(FIRST, &sent[..bounds[decided]]);
        assert!(matches!(passed, Verdict::Pass(_)));
        let next = FIRST.wrapping_add(bounds[decided] as u32);
        for _ in 0..3 {
            assert_eq!(gate.segment(next, &sent[bounds[decided]..]), Verdict::Drop);
        }

        let oldest = decided - REWRITES;
        let forgotten = bounds[oldest] + reclaim_in(&records[oldest]);
        let mut again = |from: usize| {
            let seq = FIRST.wrapping_add(from as u32);
            gate.segment(seq, &sent[from..bounds[decided]])
        };
        assert_eq!(again(bounds[oldest]), Verdict::Close);
        assert_eq!(again(forgotten), Verdict::Close);
        assert!(matches!(again(forgotten + 1), Verdict::Pass(_)));
        let Verdict::Pass(bytes) = again(bounds[oldest + 1]) else {
            panic!("what is remembered passes");
        };
        assert_eq!(bytes[reclaim_in(&records[oldest + 1])], 1);
    }
}

/// More calls in one dropped segment than are remembered: nothing that came before
/// is known any more, and the segment itself is decided on anew.
#[test]
fn a_dropped_segment_may_hold_more_calls_than_are_remembered() {
    let records: Vec<_> = (0..10 + 2 * REWRITES as u32).map(lock).collect();
    let sent = [records.concat(), share(9)].concat();
    let bounds = bounds(&records);
    let mut path = Path::new(&sent, ISN, vec![]);
    path.send(0, bounds[10], true);
    path.send(bounds[10], sent.len(), true);
    assert_eq!(path.received().len(), bounds[10]);
    for piece in bounds[10..].windows(2) {
        path.send(piece[0], piece[1] - piece[0], false);
        path.send(piece[0], piece[1] - piece[0], true);
        let first = path.gate.clone().segment(FIRST, &sent[..bounds[1]]);
        assert_eq!(first, Verdict::Close, "pushed out at once, and for good");
    }
    let received = path.received();
    assert_eq!(received.len(), *bounds.last().expect("not empty"));
    for (record, at) in records.iter().zip(&bounds) {
        assert_eq!(received[at + reclaim_in(record)], 1);
    }
}

/// As many calls on their way as are remembered come again as they were; with one
/// more, the connection is closed.
#[test]
fn a_full_ring_is_remembered_and_no_more() {
    for (calls, is_closed) in [(REWRITES, false), (REWRITES + 1, true)] {
        let sent = (0..calls as u32).map(lock).collect::<Vec<_>>().concat();
        let mut path = Path::new(&sent, ISN, vec![]);
        path.send(0, sent.len(), false);
        path.send(0, sent.len(), true);
        assert_eq!(path.is_closed, is_closed, "{calls} calls");
    }
}

/// A connection may send gigabytes between two locks; what it sends twice then is
/// not what it sent long ago.
#[test]
fn sequence_numbers_wrap() {
    let mut stream = Stream::default();
    let mut rewrites = [Default::default(); REWRITES];
    stream.begin(ISN);
    for seq in 0..=REWRITES as u32 {
        stream.remember(&mut rewrites, FIRST.wrapping_add(seq), 1);
    }
    const SEGMENT: u32 = 1 << 16;
    stream.pass(FIRST, SEGMENT);
    for _ in 0..3 * (u32::MAX / SEGMENT) / 2 {
        let next = stream.next;
        assert_eq!(stream.place(next, SEGMENT), Place::Seen(0));
        stream.pass(next, SEGMENT);
        let again = stream.place(next, SEGMENT);
        assert_eq!(again, Place::Seen(SEGMENT));
    }
}

/// A keepalive repeats the byte before the next one, even before there is any.
#[test]
fn a_keepalive_passes() {
    let sent = lock(1);
    let mut gate = Gate::new(ISN, vec![]);
    assert_eq!(gate.segment(ISN, &[0]), Verdict::Pass(vec![0]));
    assert!(matches!(gate.segment(FIRST, &sent), Verdict::Pass(_)));
    let last = FIRST.wrapping_add(sent.len() as u32 - 1);
    assert_eq!(gate.segment(last, &[3]), Verdict::Pass(vec![3]));
}

/// Since 6.4 a client can ask any RPC service for TLS with a call that is no LOCK;
/// what follows is no record, whatever is in it.
#[test]
fn a_connection_that_becomes_tls_is_lost() {
    const AUTH_TLS: u32 = 7;
    const CLIENT_HELLO: [u8; 9] = [0x16, 3, 1, 0, 200, 1, 0, 0, 196];
    let mut probe = message(1, procedure::NULL, false);
    probe.truncate(24);
    for word in [AUTH_TLS, 0, 0, 0] {
        probe.extend(word.to_be_bytes());
    }
    let probe = wire::record(&probe);
    let mut gate = Gate::new(ISN, vec![]);
    assert_eq!(gate.segment(FIRST, &probe), Verdict::Pass(probe.clone()));
    let next = FIRST.wrapping_add(probe.len() as u32);
    assert_eq!(gate.segment(next, &CLIENT_HELLO), Verdict::Close);
    let again = gate.segment(next, &lock(2));
    assert_eq!(again, Verdict::Close, "lost for good");
}

/// lockd takes any word but 0 for true: where its first bytes are not 0, they may
/// have gone on before the last one is seen.
#[test]
fn a_reclaim_word_with_high_bytes_does_not_pass() {
    for high in [1, 2, 3] {
        let mut message = message(1, procedure::LOCK, false);
        let at = message.len() - 4 - high - 1;
        message[at] = 1;
        assert_eq!(Gate::new(0, vec![]).datagram(&message), Verdict::Drop);
        let record = wire::record(&message);
        let mut path = Path::new(&record, ISN, vec![]);
        path.finish(1);
        assert!(path.is_closed);
        assert!(lockd::records(&path.received()).is_empty());
    }
}

/// 6.1 and 6.12 read a credential by what is in it, later kernels by its length:
/// a call that is a LOCK in one reading only is decided on in neither.
#[test]
fn a_credential_of_two_lengths_does_not_pass() {
    for by in [-8, -4, 4, 8, 200] {
        let mut call = Call::of_linux(1, procedure::LOCK, false);
        call.credential = Credential::Lying {
            machine: b"client".to_vec(),
            groups: vec![0; 6],
            by,
        };
        let message = Message::Call(call).encode();
        let by_contents = lockd::take(&message, Reading::Contents);
        assert!(matches!(by_contents, Some(Taken::Lock { .. })));
        assert_eq!(Gate::new(0, vec![]).datagram(&message), Verdict::Drop);
    }
}

/// 6.1 counts the words of a machine's name in 32 bits, and finds none in one of
/// almost 4 GiB.
#[test]
fn a_machine_name_whose_length_overflows_does_not_pass() {
    let mut call = Call::of_linux(1, procedure::LOCK, false);
    call.credential = Credential::Unix {
        machine: Vec::new(),
        groups: vec![7; 16],
    };
    let mut message = Message::Call(call).encode();
    const MACHINE_LEN: usize = 9 * 4;
    for len in [0xffff_fffd, u32::MAX] {
        message[MACHINE_LEN..MACHINE_LEN + 4].copy_from_slice(&len.to_be_bytes());
        let by_contents = lockd::take(&message, Reading::Contents);
        assert!(matches!(by_contents, Some(Taken::Lock { .. })));
        assert_eq!(Gate::new(0, vec![]).datagram(&message), Verdict::Drop);
    }
}

/// lockd joins fragments; a LOCK whose parts are innocent by themselves.
#[test]
fn fragments_do_not_pass() {
    let message = message(1, procedure::LOCK, false);
    for cut in 0..message.len() {
        let (first, last) = message.split_at(cut);
        let sent = [wire::fragment(first, 0), wire::record(last)].concat();
        let mut path = Path::new(&sent, ISN, vec![]);
        path.finish(1);
        assert!(path.is_closed);
        assert!(lockd::records(&path.received()).is_empty());
    }
}

/// A packet that ends before its length says so, as a frame of the wire may.
#[test]
fn a_packet_that_is_shorter_than_it_says_is_lost() {
    let message = message(1, procedure::LOCK, false);
    let mut calls = Calls::default();
    calls.begin_datagram(0, message.len() as u32);
    let found = loop {
        match calls.step(&message[..50]) {
            Found::More => {}
            found => break found,
        }
    };
    assert_eq!(found, Found::Lost);
}
