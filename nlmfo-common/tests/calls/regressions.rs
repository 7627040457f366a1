//! What a client once could do, or might do one day: one test each.

use nlmfo_common::nlm_call::{Calls, Found};
use nlmfo_common::stream::{Follower, Place, SEGMENTS, SETTLED, Tcp};

use crate::model::gate::{Gate, Verdict};
use crate::model::lockd::{self, Reading, Taken};
use crate::model::path::{Decoy, Fate, Path};
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

/// What is decided in a segment that is dropped is decided anew, however often it comes.
#[test]
fn a_dropped_segment_is_as_if_it_had_not_come() {
    let records: Vec<_> = (0..20).map(lock).chain([share(20)]).collect();
    let bounds = bounds(&records);
    let sent = records.concat();
    let mut path = Path::new(&sent, ISN, vec![]);
    path.send(0, bounds[10], Fate::Arrives);
    for _ in 0..3 * SEGMENTS {
        path.send(bounds[10], sent.len(), Fate::Arrives);
    }
    assert_eq!(path.received().len(), bounds[10]);
    path.send(bounds[10], bounds[20] - bounds[10], Fate::Arrives);
    assert!(!path.is_closed);
    let received = path.received();
    assert_eq!(received.len(), bounds[20]);
    for (record, at) in records.iter().zip(&bounds).take(20) {
        assert_eq!(received[at + reclaim_in(record)], 1);
    }
}

/// TCP, open, has accepted so many bytes.
fn tcp(accepted: usize) -> Tcp {
    Tcp {
        is_open: true,
        accepted: FIRST.wrapping_add(accepted as u32),
        ..Tcp::default()
    }
}

/// A segment that TCP discards, and at the same sequence number a LOCK that it takes: not
/// at once, as nobody knows yet which of them it takes, and then decided on.
#[test]
fn a_lock_behind_a_decoy_is_decided_on() {
    let lock = lock(1);
    let changed = Decoy::Changed(reclaim_in(&lock) as u16, 1);
    for decoy in [Decoy::Harmless, Decoy::Endless, changed] {
        let mut path = Path::new(&lock, ISN, vec![]);
        path.send(0, lock.len(), Fate::Discarded(decoy));
        path.send(0, lock.len(), Fate::Arrives);
        path.pause(SETTLED - 1);
        path.send(0, lock.len(), Fate::Arrives);
        assert!(path.received().is_empty(), "{decoy:?}");
        path.pause(1);
        path.send(0, lock.len(), Fate::Arrives);
        assert_eq!(path.received().len(), lock.len(), "{decoy:?}");
        assert_eq!(path.received()[reclaim_in(&lock)], 1, "{decoy:?}");
    }
}

/// What TCP keeps beyond a gap was read as what follows the segment that it discarded.
#[test]
fn a_gap_is_not_filled_with_other_bytes() {
    let lock = lock(1);
    let sent = [lock.clone(), vec![0; 100]].concat();
    let mut path = Path::new(&sent, ISN, vec![]);
    path.send(0, 40, Fate::Discarded(Decoy::Endless));
    path.send(40, sent.len(), Fate::Arrives);
    path.pause(2 * SETTLED);
    path.send(0, 40, Fate::Arrives);
    assert!(path.is_closed);
    assert!(path.received().is_empty());
}

/// A segment may wait in the backlog for longer than it should.
#[test]
fn nothing_comes_again_while_the_socket_is_busy() {
    let lock = lock(1);
    let mut gate = Gate::new(ISN, vec![]);
    let other = wire::record(&[0; 60]);
    let passed = gate.segment(FIRST, &other, SETTLED, &tcp(0));
    assert!(matches!(passed, Verdict::Pass(_)));
    let busy = Tcp {
        is_busy: true,
        ..tcp(0)
    };
    let late = 3 * SETTLED;
    assert_eq!(gate.segment(FIRST, &lock, late, &busy), Verdict::Drop);
    let passed = gate.segment(FIRST, &lock, late, &tcp(0));
    assert!(matches!(passed, Verdict::Pass(_)));
}

/// A SYN cookie that was sent before the SYN that the gate follows: TCP stands where the
/// gate never was.
#[test]
fn a_connection_at_another_sequence_number_is_closed() {
    let lock = lock(1);
    for off in [1u32, 1000, u32::MAX - 1000, u32::MAX] {
        let mut gate = Gate::new(ISN, vec![]);
        let elsewhere = Tcp {
            is_open: true,
            accepted: FIRST.wrapping_add(off),
            ..Tcp::default()
        };
        for now in [SETTLED, 3 * SETTLED] {
            let verdict = gate.segment(elsewhere.accepted, &lock, now, &elsewhere);
            assert!(!matches!(verdict, Verdict::Pass(_)), "{off}: {verdict:?}");
        }
    }
}

/// The first data may come with the end of the handshake, and before that nothing is
/// accepted: no byte is an old one.
#[test]
fn in_a_handshake_only_the_first_byte_comes_first() {
    let lock = lock(1);
    let embryo = Tcp::default();
    let mut gate = Gate::new(ISN, vec![]);
    let mut segment = |seq, now| gate.segment(seq, &lock, now, &embryo);
    assert_eq!(segment(ISN, SETTLED), Verdict::Drop);
    assert_eq!(segment(FIRST.wrapping_add(1), SETTLED), Verdict::Drop);
    assert!(matches!(segment(FIRST, SETTLED), Verdict::Pass(_)));
    assert_eq!(segment(FIRST, SETTLED + 1), Verdict::Drop);
    assert!(matches!(segment(FIRST, 2 * SETTLED), Verdict::Pass(_)));
    assert_eq!(segment(ISN, 4 * SETTLED), Verdict::Drop);
}

/// As many segments as are kept may be lost after the gate; with one more, nobody knows
/// how the first of them began.
#[test]
fn no_more_states_than_these_are_kept() {
    for (segments, is_closed) in [(SEGMENTS, false), (SEGMENTS + 1, true)] {
        let sent = lock(1);
        let mut path = Path::new(&sent, ISN, vec![]);
        for nth in 0..segments {
            path.send(nth * 10, 10, Fate::LostAfterGate);
        }
        path.pause(SETTLED);
        path.send(0, sent.len(), Fate::Arrives);
        assert_eq!(path.is_closed, is_closed, "{segments} segments");
    }
}

/// States that were kept of what TCP never accepted are none of the connection's.
#[test]
fn a_state_of_a_discarded_segment_is_not_gone_back_to() {
    let lock = lock(1);
    let mut gate = Gate::new(ISN, vec![]);
    let mut endless = vec![0; lock.len()];
    endless[..4].copy_from_slice(&(wire::LAST_FRAGMENT | 4000).to_be_bytes());
    // The decoy's state after 50 bytes is kept; TCP has discarded all of it.
    for piece in [&endless[..50], &endless[50..60]] {
        let seq = gate.follower.stream.next;
        let passed = gate.segment(seq, piece, SETTLED, &tcp(0));
        assert!(matches!(passed, Verdict::Pass(_)));
    }
    let passed = gate.segment(FIRST, &lock[..50], 3 * SETTLED, &tcp(0));
    assert!(matches!(passed, Verdict::Pass(_)));
    let next = FIRST.wrapping_add(50);
    let passed = gate.segment(next, &lock[50..60], 3 * SETTLED, &tcp(50));
    assert!(matches!(passed, Verdict::Pass(_)));
    let passed = gate.segment(next, &lock[50..], 5 * SETTLED, &tcp(50));
    let Verdict::Pass(bytes) = passed else {
        panic!("{passed:?}");
    };
    assert_eq!(bytes[reclaim_in(&lock) - 50], 1);
}

/// A connection may send gigabytes between two locks.
#[test]
fn sequence_numbers_wrap() {
    const SEGMENT: u32 = 1 << 16;
    let mut follower = Follower::default();
    follower.begin(ISN);
    let mut accepted = FIRST;
    for now in 0..3 * u64::from(u32::MAX / SEGMENT) / 2 {
        let tcp = Tcp {
            is_open: true,
            accepted,
            ..Tcp::default()
        };
        let next = follower.stream.next;
        assert_eq!(follower.place(next, SEGMENT, now, &tcp), Place::New(0));
        follower.keep();
        accepted = next.wrapping_add(SEGMENT);
        follower.pass(accepted, now);
        let tcp = Tcp { accepted, ..tcp };
        assert_eq!(follower.place(next, SEGMENT, now, &tcp), Place::Old);
    }
}

/// A keepalive repeats the byte before the next one, even before there is any.
#[test]
fn a_keepalive_passes() {
    let sent = lock(1);
    let mut gate = Gate::new(ISN, vec![]);
    let keepalive = gate.segment(ISN, &[0], SETTLED, &tcp(0));
    assert_eq!(keepalive, Verdict::Pass(vec![0]));
    let passed = gate.segment(FIRST, &sent, SETTLED, &tcp(0));
    assert!(matches!(passed, Verdict::Pass(_)));
    let last = FIRST.wrapping_add(sent.len() as u32 - 1);
    let keepalive = gate.segment(last, &[3], SETTLED, &tcp(sent.len()));
    assert_eq!(keepalive, Verdict::Pass(vec![3]));
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
    let passed = gate.segment(FIRST, &probe, SETTLED, &tcp(0));
    assert_eq!(passed, Verdict::Pass(probe.clone()));
    let next = FIRST.wrapping_add(probe.len() as u32);
    let mut segment = |bytes: &[u8]| gate.segment(next, bytes, SETTLED, &tcp(probe.len()));
    assert_eq!(segment(&CLIENT_HELLO), Verdict::Close);
    let again = segment(&lock(2));
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
        assert!(lockd::records(path.received()).is_empty());
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
        assert!(lockd::records(path.received()).is_empty());
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
