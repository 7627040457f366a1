//! Clients that lie: whatever lockd would take for a LOCK or SHARE has been decided
//! on, or does not arrive.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::config;
use crate::model::attack;
use crate::model::wire::{self, Call, Credential, Message};
use crate::strategies;

/// Words that a parser may trip over.
const WORDS: [u32; 38] = [
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    8,
    9,
    12,
    15,
    16,
    17,
    20,
    22,
    24,
    28,
    31,
    32,
    33,
    36,
    63,
    64,
    65,
    0xff,
    0x100,
    0x101,
    400,
    1024,
    1025,
    0x10000,
    0x0100_0000,
    0x0100_0001,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xffff_fffd,
    0xffff_ffff,
];

fn word() -> impl Strategy<Value = u32> {
    prop_oneof![8 => select(&WORDS[..]), 4 => (0..40u32).prop_map(|n| n * 4), 1 => any::<u32>()]
}

/// What a client does to a call before it sends it.
#[derive(Clone, Debug)]
enum Lie {
    None,
    /// Other words at these places.
    Words(Vec<(Index, u32)>),
    /// Another word so many words before the end: the `reclaim` word is near it.
    NearEnd(usize, u32),
    Cut(Index),
    /// Some words more, or fewer, somewhere in it.
    Insert(Index, Vec<u32>),
    Remove(Index),
    CredentialLength(i32),
}

fn lie() -> impl Strategy<Value = Lie> {
    prop_oneof![
        2 => Just(Lie::None),
        6 => vec((any::<Index>(), word()), 1..4).prop_map(Lie::Words),
        2 => (1..5usize, word()).prop_map(|(at, word)| Lie::NearEnd(at, word)),
        2 => any::<Index>().prop_map(Lie::Cut),
        2 => (any::<Index>(), vec(word(), 1..5)).prop_map(|(at, words)| Lie::Insert(at, words)),
        1 => any::<Index>().prop_map(Lie::Remove),
        3 => (-30..30i32).prop_map(|words| Lie::CredentialLength(words * 4)),
        1 => (-30..30i32).prop_map(Lie::CredentialLength),
    ]
}

fn tell(mut call: Call, lie: Lie) -> Vec<u8> {
    if let (Lie::CredentialLength(by), Credential::Unix { machine, groups }) =
        (&lie, &call.credential)
    {
        call.credential = Credential::Lying {
            machine: machine.clone(),
            groups: groups.clone(),
            by: *by,
        };
    }
    let mut message = Message::Call(call).encode();
    let words = message.len() / 4;
    match lie {
        Lie::None | Lie::CredentialLength(_) => {}
        Lie::Words(changes) => {
            for (at, word) in changes {
                let at = at.index(words) * 4;
                message[at..at + 4].copy_from_slice(&word.to_be_bytes());
            }
        }
        Lie::NearEnd(before, word) => {
            let at = (words - before) * 4;
            message[at..at + 4].copy_from_slice(&word.to_be_bytes());
        }
        Lie::Cut(at) => message.truncate(at.index(message.len())),
        Lie::Insert(at, inserted) => {
            let at = at.index(words) * 4;
            message.splice(at..at, inserted.into_iter().flat_map(u32::to_be_bytes));
        }
        Lie::Remove(at) => {
            let at = at.index(words) * 4;
            message.drain(at..at + 4);
        }
    }
    message
}

fn lying_message() -> impl Strategy<Value = Vec<u8>> {
    (strategies::reclaiming(), lie()).prop_map(|(call, lie)| tell(call, lie))
}

/// How a client marks a message.
#[derive(Clone, Debug)]
enum Marks {
    Well,
    /// A length that is off by so much.
    Off(i32),
    /// In fragments: the places where it is cut, and whether the last one says so.
    Cut(Vec<Index>, bool),
    /// After a record of this kind of emptiness.
    AfterShort(usize),
}

fn marked_message() -> impl Strategy<Value = Vec<u8>> {
    let marks = prop_oneof![
        10 => Just(Marks::Well),
        1 => (-9..9i32).prop_map(Marks::Off),
        1 => (vec(any::<Index>(), 1..4), any::<bool>()).prop_map(|(at, last)| Marks::Cut(at, last)),
        1 => (0..12usize).prop_map(Marks::AfterShort),
    ];
    (lying_message(), marks).prop_map(|(message, marks)| match marks {
        Marks::Well => wire::record(&message),
        Marks::Off(by) => {
            let mut record = wire::record(&message);
            let marker = (wire::LAST_FRAGMENT | message.len() as u32).wrapping_add_signed(by);
            record[..4].copy_from_slice(&marker.to_be_bytes());
            record
        }
        Marks::Cut(at, says_so) => {
            let mut cuts: Vec<_> = at.iter().map(|at| at.index(message.len() + 1)).collect();
            cuts.sort_unstable();
            let mut stream = Vec::new();
            let mut from = 0;
            for to in cuts {
                stream.extend(wire::fragment(&message[from..to], 0));
                from = to;
            }
            let last = if says_so { wire::LAST_FRAGMENT } else { 0 };
            stream.extend(wire::fragment(&message[from..], last));
            stream
        }
        Marks::AfterShort(len) => [wire::record(&vec![0; len]), wire::record(&message)].concat(),
    })
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn no_lie_gets_a_call_past_the_gate(
        records in vec(marked_message(), 1..6),
        isn in strategies::isn(),
        events in strategies::events(),
        piece in prop_oneof![Just(1usize), 2..5000usize],
    ) {
        attack::stream(&records.concat(), isn, events, piece);
    }

    #[test]
    fn no_lying_datagram_gets_past_the_gate(message in lying_message()) {
        attack::datagram(&message);
    }

    #[test]
    fn no_bytes_get_past_the_gate(bytes in vec(any::<u8>(), 0..200)) {
        attack::of_bytes(&bytes);
    }
}
