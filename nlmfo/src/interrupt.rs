//! Signals during a command that changes the kernel.
//! SIGINT, SIGTERM and SIGQUIT end it as soon as the current step allows: temporary state is
//! removed, and remaining fences and windows are reported. SIGHUP does not: an operator whose
//! connection breaks wants the VIP moved, and finds the stored report. Programs that such a
//! command starts inherit that.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use nix::sys::signal::{SigHandler, Signal, signal};
use signal_hook::consts::{SIGINT, SIGQUIT, SIGTERM};
use signal_hook::flag::{register_conditional_shutdown, register_usize};
use tokio::signal::unix::{self, SignalKind};

/// The signals that end a command.
const ENDING: [i32; 3] = [SIGINT, SIGTERM, SIGQUIT];

/// The received signal; 0 if none.
static CAME: OnceLock<Arc<AtomicUsize>> = OnceLock::new();

/// Receives the signals that end a command.
pub struct Interrupts([unix::Signal; 3]);

/// From now on, ignores SIGHUP, and keeps a signal that comes for [`Interrupts::listen`].
pub fn keep() -> io::Result<()> {
    // SAFETY: this installs no handler of ours, so none can do what a handler must not.
    unsafe { signal(Signal::SIGHUP, SigHandler::SigIgn) }?;
    let came = CAME.get_or_init(Arc::default);
    for number in ENDING {
        register_usize(number, Arc::clone(came), number as usize)?;
    }
    Ok(())
}

impl Interrupts {
    /// From now on, receives these signals and ignores SIGHUP. Must be called within a tokio
    /// runtime.
    pub fn listen() -> io::Result<Self> {
        keep()?;
        let [int, term, quit] = ENDING.map(|number| unix::signal(SignalKind::from_raw(number)));
        Ok(Interrupts([int?, term?, quit?]))
    }

    /// Waits for a signal.
    pub async fn next(&mut self) {
        let [int, term, quit] = &mut self.0;
        tokio::select! {
            _ = int.recv() => {}
            _ = term.recv() => {}
            _ = quit.recv() => {}
        }
    }
}

/// The received signal, for work that checks between its steps.
pub fn came() -> Option<&'static str> {
    let number = CAME.get()?.load(Ordering::Relaxed);
    match i32::try_from(number).ok()? {
        SIGINT => Some("SIGINT"),
        SIGTERM => Some("SIGTERM"),
        SIGQUIT => Some("SIGQUIT"),
        _ => None,
    }
}

/// The work is done: from now on a signal ends the command with `status`, since printing to a reader
/// that does not read may take forever.
pub fn work_is_done(status: u8) {
    for number in ENDING {
        // Without the handler, a signal does not end a command that waits for its reader.
        if let Err(error) =
            register_conditional_shutdown(number, status.into(), Arc::new(AtomicBool::new(true)))
        {
            tracing::debug!(%error, number, "cannot install the final signal handler");
        }
    }
}
