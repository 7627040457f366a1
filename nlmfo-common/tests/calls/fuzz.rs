//! What the fuzz target runs (`fuzz/fuzz_targets/calls.rs`), without a fuzzer.

use std::sync::LazyLock;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::config;
use crate::model::{attack, seeds};

static SEEDS: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(seeds::all);

#[test]
fn the_seeds_and_their_beginnings() {
    for (_, seed) in &*SEEDS {
        for len in 0..=seed.len().min(1000) {
            attack::of_bytes(&seed[..len]);
        }
        attack::of_bytes(seed);
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn changed_seeds(
        seed in any::<Index>(),
        changes in vec((any::<Index>(), any::<u8>()), 0..6),
        tail in any::<Index>(),
    ) {
        let mut bytes = seed.get(&SEEDS).1.clone();
        bytes.extend(&tail.get(&SEEDS).1[1..]);
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        attack::of_bytes(&bytes);
    }
}
