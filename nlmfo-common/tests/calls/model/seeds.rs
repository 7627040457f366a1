//! Attacks for a fuzzer to begin with, in the form that [`super::attack::of_bytes`]
//! reads: every call by itself, well-formed, and a few together.

use super::wire::{self, Call, Message, procedure};

/// A name for the file, and what is in it.
pub fn all() -> Vec<(String, Vec<u8>)> {
    const DATAGRAM: u8 = u8::MAX;
    let mut seeds = Vec::new();
    let mut together = Vec::new();
    for version in [1, 3, 4] {
        for procedure in procedure::ALL {
            let mut call = Call::of_linux(procedure, procedure, false);
            call.version = version;
            let message = Message::Call(call).encode();
            let name = format!("v{version}-procedure{procedure}");
            seeds.push((format!("{name}-udp"), [&[DATAGRAM], &*message].concat()));
            let record = wire::record(&message);
            seeds.push((format!("{name}-tcp"), [&[0], &*record].concat()));
            if !matches!(procedure, procedure::SHARE) {
                together.extend(record);
            }
        }
    }
    // Sent on, lost after the gate, repeated with an overlap, after a gap, with a byte
    // changed and discarded.
    let events = [
        [0, 0, 100, 0],
        [12, 0, 200, 0],
        [1, 0, 90, 16],
        [2, 40, 250, 0],
        [3, 9, 60, 0],
        [20, 7, 120, 1],
        [1, 0, 120, 20],
    ];
    let count = [events.len() as u8];
    let told = [&count, events.as_flattened(), &together].concat();
    seeds.push(("all-calls".into(), told));
    seeds
}
