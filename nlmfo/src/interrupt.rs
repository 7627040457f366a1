//! Signals during a command that changes the kernel.
//!
//! SIGINT, SIGTERM and SIGQUIT end it, as soon as the step that it is at lets it: what it
//! holds is put back, and what still stands is said. SIGHUP does not: an operator whose
//! connection breaks wants the VIP moved, and finds the report where it is kept. The
//! programs that such a command starts inherit that.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use nix::sys::signal::{SigHandler, Signal, signal};
use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag::{register_conditional_shutdown, register_usize};
use tokio::signal::unix::{self, SignalKind};

/// Those that end a command.
const ENDING: [i32; 3] = [SIGINT, SIGTERM, SIGQUIT];

/// The signal that has come; 0 if none has.
static CAME: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Hears the signals that end a command.
pub struct Interrupts([unix::Signal; 3]);

impl Interrupts {
    /// From now on these signals are heard, and a hangup is not. To be called within a
    /// tokio runtime.
    pub fn listen() -> io::Result<Self> {
        // SAFETY: no handler of ours is installed, so none can do what a handler must not.
        unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }?;
        let came = CAME.get_or_init(Arc::default);
        for number in ENDING {
            register_usize(number, Arc::clone(came), number as usize)?;
        }
        let [int, term, quit] = ENDING.map(|number| unix::signal(SignalKind::from_raw(number)));
        Ok(Interrupts([int?, term?, quit?]))
    }

    /// Waits for one.
    pub async fn next(&mut self) {
        let [int, term, quit] = &mut self.0;
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

/// The signal that has come, for work that asks between its steps.
pub fn came() -> Option<&'static str> {
    let number = CAME.get()?.load(Ordering::Relaxed);
    match i32::try_from(number).ok()? {
        SIGINT => Some("SIGINT"),
        SIGTERM => Some("SIGTERM"),
        SIGQUIT => Some("SIGQUIT"),
        _ => None,
    }
}

/// All is done that is to be done, and `status` is how the command ends, whatever signal
/// comes while it prints: to a reader that does not read, that may take for ever.
pub fn only_words_are_left(status: u8) {
    for number in ENDING {
        // Without it, a signal does not end a command that waits for its reader.
        if let Err(error) =
            register_conditional_shutdown(number, status.into(), Arc::new(AtomicBool::new(true)))
        {
            tracing::debug!(%error, number, "no handler for the end");
        }
    }
}
