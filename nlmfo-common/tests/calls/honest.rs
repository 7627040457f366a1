//! Honest clients, on paths that lose, repeat and reorder: each LOCK
//! arrives with the opposite `reclaim`, a SHARE that is no reclaim does not arrive,
//! and all else arrives as it was sent.

use nlmfo_common::nlm_call::Fsid;
use nlmfo_common::stream::{SEGMENTS, SETTLED};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::model::gate::{Gate, Verdict};
use crate::model::lockd::{self, Reading, Taken};
use crate::model::path::{Fate, Path};
use crate::model::wire::{self, Call, Message};
use crate::strategies;
use crate::{config, one_in};

/// What must arrive.
struct Expected {
    /// The stream, or what comes before the part of it that is held back.
    stream: Vec<u8>,
    /// The `reclaim` bytes in it.
    locks: Vec<usize>,
    is_held_back: bool,
}

/// What must arrive of a stream in a window, according to lockd's decoder.
fn expected(sent: &[u8]) -> Expected {
    let mut stream = sent.to_vec();
    let mut locks = Vec::new();
    for record in lockd::records(sent) {
        let taken = lockd::take(&record.message, Reading::Length);
        assert_eq!(taken, lockd::take(&record.message, Reading::Contents));
        match taken {
            Some(Taken::Lock { reclaim, at, .. }) => {
                let at = record.at[at];
                stream[at] = u8::from(!reclaim);
                locks.push(at);
            }
            Some(Taken::Share { at }) if stream[record.at[at]] == 0 => {
                stream.truncate(record.at[at]);
                return Expected {
                    stream,
                    locks,
                    is_held_back: true,
                };
            }
            _ => {}
        }
    }
    Expected {
        stream,
        locks,
        is_held_back: false,
    }
}

/// Whether TCP misses what the gate has read.
fn is_spoilt(fate: Fate) -> bool {
    matches!(fate, Fate::LostAfterGate | Fate::Discarded(_))
}

fn stream_of(messages: &[Message]) -> Vec<u8> {
    let records = messages
        .iter()
        .map(|message| wire::record(&message.encode()));
    records.collect::<Vec<_>>().concat()
}

/// A message whose procedure its version has. NLM version 1 has neither NM_LOCK nor
/// SHARE, and lockd says so; the gate does not tell them from those of version 3.
fn message() -> impl Strategy<Value = Message> {
    strategies::message().prop_map(|message| match message {
        Message::Call(call) if call.version == 1 && call.procedure > 16 => {
            Message::Call(Call { version: 3, ..call })
        }
        message => message,
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn in_a_window_each_call_arrives_as_it_should(
        messages in vec(message(), 1..10),
        isn in strategies::isn(),
        events in strategies::events(),
        piece in prop_oneof![Just(1usize), 2..5000usize],
    ) {
        let sent = stream_of(&messages);
        let expected = expected(&sent);
        let mut path = Path::new(&sent, isn, Vec::new());
        let is_spoilt = events.iter().any(|event| is_spoilt(event.fate));
        for event in events {
            path.play(event);
        }
        path.finish(piece);
        path.finish(1);
        // What was read and did not arrive may have been worth closing the connection.
        prop_assert!(!path.is_closed || is_spoilt, "an honest client's connection is closed");
        prop_assert!(expected.stream.starts_with(path.received()), "something else arrives");
        if path.is_closed {
            return Ok(());
        }
        prop_assert!(path.received() == expected.stream, "something is missing");
        let decided = path.gate.log.values().filter(|decided| !decided.is_share);
        prop_assert_eq!(decided.count(), expected.locks.len());
    }

    /// The kernel's own grace comes and goes: what was decided on a call holds for
    /// all copies of it (`Path::send`), and what was left is as it was sent.
    #[test]
    fn what_was_decided_holds(
        messages in vec(message(), 1..6),
        isn in strategies::isn(),
        events in strategies::events(),
        kernel_grace in strategies::kernel_grace(),
    ) {
        let sent = stream_of(&messages);
        let mut expected = expected(&sent);
        let mut path = Path::new(&sent, isn, kernel_grace);
        for event in events {
            path.play(event);
        }
        path.finish(1);
        if path.is_closed {
            return Ok(());
        }
        for at in expected.locks {
            expected.stream[at] = path.gate.log[&at].written as u8;
        }
        prop_assert!(path.received() == expected.stream, "something else arrives");
    }

    #[test]
    fn a_datagram_arrives_as_it_should(
        message in message(),
    ) {
        let sent = message.encode();
        let mut gate = Gate::new(0, Vec::new());
        let verdict = gate.datagram(&sent);
        let mut arrives = sent.clone();
        match lockd::take(&sent, Reading::Length) {
            Some(Taken::Share { at }) if sent[at] == 0 => {
                prop_assert_eq!(verdict, Verdict::Drop);
                return Ok(());
            }
            Some(Taken::Lock { xid, reclaim, at }) => {
                prop_assert_eq!(gate.log[&at].xid, xid);
                arrives[at] = u8::from(!reclaim);
            }
            _ => {}
        }
        prop_assert_eq!(verdict, Verdict::Pass(arrives));
    }

    /// The filesystem of a call is the one that its handle names.
    #[test]
    fn the_filesystem_of_a_call_is_known(
        call in strategies::reclaiming(),
        piece in 1..400usize,
    ) {
        let handle = &call.arguments.handle;
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(handle.chunks(4)) {
            let mut padded = [0; 4];
            padded[..bytes.len()].copy_from_slice(bytes);
            *word = u32::from_ne_bytes(padded);
        }
        let sent = wire::record(&Message::Call(call.clone()).encode());
        let mut path = Path::new(&sent, 7, Vec::new());
        path.finish(piece);
        let (_, decided) = path.gate.log.first_key_value().expect("it has a reclaim word");
        prop_assert_eq!(decided.fsid, Fsid::of_handle(&words));
        prop_assert_eq!(decided.xid, call.xid);
    }
}

proptest! {
    #![proptest_config(one_in(40))]

    /// A long connection, of which all that is on its way is lost after the gate again and
    /// again, and comes again in other pieces.
    #[test]
    fn a_long_connection_is_followed(
        calls in vec(strategies::lock(), 65..200),
        isn in strategies::isn(),
        flights in vec((1..3000usize, 0..=SEGMENTS, 1..3000usize), 1..30),
    ) {
        let messages: Vec<_> = calls.into_iter().map(Message::Call).collect();
        let sent = stream_of(&messages);
        let expected = expected(&sent);
        let mut path = Path::new(&sent, isn, Vec::new());
        let mut flights = flights.into_iter().cycle();
        while path.received().len() < sent.len() && !path.is_closed {
            let (len, segments, again) = flights.next().expect("endless");
            let arrived = path.received().len();
            for nth in 0..segments {
                path.send(arrived + nth * len, len, Fate::LostAfterGate);
            }
            path.pause(2 * SETTLED);
            path.send(arrived, again, Fate::Arrives);
        }
        prop_assert!(!path.is_closed, "an honest client's connection is closed");
        prop_assert!(path.received() == expected.stream, "something else arrives");
        prop_assert!(!expected.is_held_back);
    }
}
