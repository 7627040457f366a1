//! What must hold whatever a client sends: no LOCK and no SHARE that lockd would
//! take has got past the gate undecided.

use super::gate::{Decided, Gate, Verdict};
use super::lockd::{self, Reading, Taken};
use super::path::{Decoy, Event, Fate, Path, Start};

/// Sends a stream along a path. Panics if a call gets past the gate.
pub fn stream(sent: &[u8], isn: u32, events: impl IntoIterator<Item = Event>, piece: usize) {
    let mut path = Path::new(sent, isn, Vec::new());
    for event in events {
        path.play(event);
    }
    path.finish(piece);
    for record in lockd::records(path.received()) {
        for reading in Reading::BOTH {
            let taken = lockd::take(&record.message, reading);
            check(taken, reading, |at| {
                path.gate.log.get(record.at.get(at)?).copied()
            });
        }
    }
}

/// Sends a datagram. Panics if a call gets past the gate.
pub fn datagram(payload: &[u8]) {
    let mut gate = Gate::new(0, Vec::new());
    let Verdict::Pass(received) = gate.datagram(payload) else {
        return;
    };
    for reading in Reading::BOTH {
        let taken = lockd::take(&received, reading);
        check(taken, reading, |at| gate.log.get(&at).copied());
    }
}

fn check(taken: Option<Taken>, reading: Reading, decided: impl Fn(usize) -> Option<Decided>) {
    match taken {
        None | Some(Taken::Other) => {}
        Some(Taken::Lock { reclaim, at, .. }) => {
            let decided = decided(at).expect("no LOCK passes undecided");
            assert!(!decided.is_share, "by {reading:?}");
            assert_ne!(decided.written == 0, decided.sent == 0, "by {reading:?}");
            assert_eq!(reclaim, decided.written != 0, "by {reading:?}");
        }
        Some(Taken::Share { at }) => {
            let decided = decided(at).expect("no SHARE passes undecided");
            assert!(decided.is_share && decided.sent != 0, "by {reading:?}");
        }
    }
}

/// Reads an attack out of any bytes: the first tells whether it is a datagram, else
/// how many segments are told, four bytes each; then comes what is sent.
pub fn of_bytes(bytes: &[u8]) {
    let Some((&count, rest)) = bytes.split_first() else {
        return;
    };
    if count == u8::MAX {
        return datagram(rest);
    }
    let told = (usize::from(count) * 4).min(rest.len() / 2);
    let (told, sent) = rest.split_at(told);
    let events = told.chunks_exact(4).map(|told| {
        let far = u16::from(told[1]);
        Event {
            start: match told[0] % 4 {
                0 => Start::Next,
                1 => Start::Again,
                2 => Start::Back(far),
                _ => Start::Gap(far),
            },
            len: told[2].into(),
            fate: match told[0] / 4 % 8 {
                0 => Fate::Arrives,
                1 => Fate::ArrivesTwice,
                2 => Fate::LostBeforeGate,
                3 => Fate::LostAfterGate,
                4 => Fate::ArrivesLate(told[3]),
                5 => Fate::Discarded(Decoy::Changed(far, told[3])),
                6 => Fate::Discarded(Decoy::Harmless),
                _ => Fate::Discarded(Decoy::Endless),
            },
            pause: told[3] % 32,
        }
    });
    let isn = u32::from(count) << 24 | 0x00ff_ff00;
    stream(sent, isn, events, 1 + usize::from(count) * 8);
}
