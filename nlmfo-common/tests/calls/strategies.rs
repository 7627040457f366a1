//! Random clients and random paths.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::model::path::{Decoy, Event, Fate, Start};
use crate::model::wire::{self, Arguments, Call, Credential, Message, NLM, procedure};

/// Bytes of which only the number and the first matter.
fn bytes(len: impl Strategy<Value = usize>) -> impl Strategy<Value = Vec<u8>> {
    (len, any::<u8>()).prop_map(|(len, first)| {
        let numbers = (0..len).map(|i| i as u8);
        numbers
            .map(|i| first.wrapping_add(i.wrapping_mul(37)))
            .collect()
    })
}

/// A handle of every kind of filesystem id, and some that are none of knfsd's.
fn handle(version: u32) -> BoxedStrategy<Vec<u8>> {
    let ids = match version {
        // NFSv2's have one length.
        1 | 3 => bytes(Just(28)).boxed(),
        _ => bytes((1..=15usize).prop_map(|words| words * 4)).boxed(),
    };
    let knfsd = (0..9u8, ids).prop_map(|(kind, ids)| wire::handle(kind, &ids));
    match version {
        1 | 3 => knfsd.boxed(),
        _ => prop_oneof![9 => knfsd, 1 => bytes(0..=64usize)].boxed(),
    }
}

fn credential() -> impl Strategy<Value = Credential> {
    let unix = (
        bytes(prop_oneof![9 => 0..=20usize, 1 => 0..=255usize]),
        vec(any::<u32>(), 0..=16),
    );
    let unix = unix.prop_map(|(machine, groups)| Credential::Unix { machine, groups });
    prop_oneof![1 => Just(Credential::Null), 3 => unix]
}

fn arguments(version: u32) -> impl Strategy<Value = Arguments> {
    let opaque = || bytes(prop_oneof![15 => 0..=40usize, 1 => 0..=1024usize]);
    let parts = (
        bytes(0..=32usize),
        opaque(),
        handle(version),
        opaque(),
        any::<bool>(),
    );
    parts.prop_map(|(cookie, caller, handle, owner, reclaim)| Arguments {
        cookie,
        caller,
        handle,
        owner,
        reclaim,
    })
}

/// A call of a program, version and procedure, by a client that means no harm.
fn call(
    program: u32,
    versions: &'static [u32],
    procedures: impl Strategy<Value = u32> + Clone + 'static,
) -> impl Strategy<Value = Call> {
    select(versions).prop_flat_map(move |version| {
        let parts = (
            any::<u32>(),
            procedures.clone(),
            credential(),
            arguments(version),
            bytes(prop_oneof![9 => Just(0usize), 1 => 0..=13usize]),
        );
        parts.prop_map(
            move |(xid, procedure, credential, arguments, trailing)| Call {
                xid,
                program,
                version,
                procedure,
                credential,
                arguments,
                trailing,
            },
        )
    })
}

/// Any procedure, so often one with a `reclaim` word that it matters.
fn any_procedure() -> impl Strategy<Value = u32> + Clone {
    let locks = select(&[procedure::LOCK, procedure::LOCK_MSG, procedure::NM_LOCK][..]);
    prop_oneof![4 => locks, 1 => procedure::LOCK..=procedure::LOCK, 5 => select(&procedure::ALL[..])]
}

/// A message that a client may send to lockd's port.
pub fn message() -> impl Strategy<Value = Message> {
    let of_nlm = call(NLM, &[1, 3, 4, 4], any_procedure()).prop_map(Message::Call);
    let of_others = call(100_003, &[3, 4], any_procedure()).prop_map(Message::Call);
    let of_no_version = call(NLM, &[0, 2, 5], any_procedure()).prop_map(Message::Call);
    let reply = (any::<u32>(), bytes(0..=40usize));
    let reply = reply.prop_map(|(xid, results)| Message::Reply { xid, results });
    prop_oneof![12 => of_nlm, 1 => of_others, 1 => of_no_version, 1 => reply]
}

/// A LOCK call in NLM version 4.
pub fn lock() -> impl Strategy<Value = Call> {
    call(NLM, &[4], Just(procedure::LOCK))
}

/// A call with a `reclaim` word.
pub fn reclaiming() -> impl Strategy<Value = Call> {
    use procedure::*;
    call(
        NLM,
        &[1, 3, 4],
        select(&[LOCK, LOCK_MSG, NM_LOCK, SHARE][..]),
    )
}

/// A segment's way. `long` is the most that it holds.
pub fn event(long: u16) -> impl Strategy<Value = Event> {
    let start = prop_oneof![
        6 => Just(Start::Next),
        3 => Just(Start::Again),
        2 => (1..300u16).prop_map(Start::Back),
        1 => (1..300u16).prop_map(Start::Gap),
    ];
    let decoy = prop_oneof![
        (any::<u16>(), 1..=u8::MAX).prop_map(|(at, change)| Decoy::Changed(at, change)),
        Just(Decoy::Harmless),
        Just(Decoy::Endless),
    ];
    let fate = prop_oneof![
        6 => Just(Fate::Arrives),
        1 => Just(Fate::ArrivesTwice),
        2 => any::<u8>().prop_map(Fate::ArrivesLate),
        1 => Just(Fate::LostBeforeGate),
        2 => Just(Fate::LostAfterGate),
        2 => decoy.prop_map(Fate::Discarded),
    ];
    // Mostly at once, so often after TCP's timeout that it matters.
    let pause = prop_oneof![3 => 0..4u8, 2 => 0..20u8, 2 => 32..40u8];
    (start, 1..=long, fate, pause).prop_map(|(start, len, fate, pause)| Event {
        start,
        len,
        fate,
        pause,
    })
}

/// A stream's way: byte by byte, in segments of all sizes, or many calls in one.
pub fn events() -> impl Strategy<Value = Vec<Event>> {
    prop_oneof![
        2 => vec(event(4), 0..60),
        5 => vec(event(200), 0..40),
        3 => vec(event(2000), 0..20),
    ]
}

/// Sequence numbers, so often just before they wrap that it matters.
pub fn isn() -> impl Strategy<Value = u32> {
    let wraps = (0..2000u32).prop_map(|before| u32::MAX - before);
    prop_oneof![any::<u32>(), wraps]
}

/// Whether the kernel is in grace itself, call by call.
pub fn kernel_grace() -> impl Strategy<Value = Vec<bool>> {
    option::of(vec(any::<bool>(), 1..7)).prop_map(Option::unwrap_or_default)
}
