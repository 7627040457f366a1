//! Ticks of this node.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use crate::ticks::live::Live;
use crate::ticks::tick::Tick;
use crate::ui::state::Effect;

/// Sends ticks until the receiver is gone.
pub fn run(mut live: Live, effects: &Receiver<Effect>, mut send: impl FnMut(Tick) -> bool) {
    let mut next = Instant::now();
    loop {
        let wait = next.saturating_duration_since(Instant::now());
        match effects.recv_timeout(wait) {
            // At once: the operator is waiting.
            Ok(Effect::Open(vip)) => live.show_first(vip),
            Ok(_) => continue,
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        next = Instant::now() + live.interval();
        if !send(live.tick()) {
            return;
        }
    }
}
