//! Sets up the terminal and restores it: on a normal end, on an error, and on a panic in any
//! thread.
#![expect(
    clippy::disallowed_methods,
    reason = "the screen's own, errors of which end it"
)]

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

use super::draw::{Theme, draw};
use super::state::App;

/// Whether the terminal shows the screen. Locked for each write to it.
static IS_SHOWN: Mutex<bool> = Mutex::new(false);

/// The terminal in raw mode with its alternate screen. Dropping it restores it.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Shown>>,
}

impl Screen {
    /// Whether there is a terminal to draw on.
    pub fn is_there() -> bool {
        io::stdout().is_terminal()
    }

    pub fn enter() -> io::Result<Self> {
        static PANIC: Once = Once::new();
        PANIC.call_once(|| {
            let print = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                // First: the message would be lost with the alternate screen.
                restore();
                print(panic);
            }));
        });
        enable_raw_mode()?;
        *is_shown() = true;
        let entered = execute!(Shown, EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(Shown)));
        match entered {
            Ok(terminal) => Ok(Screen { terminal }),
            Err(error) => {
                restore();
                Err(error)
            }
        }
    }

    pub fn show(&mut self, app: &App, theme: &Theme) -> io::Result<()> {
        self.terminal
            .draw(|frame| draw(app, theme, frame.buffer_mut()))?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Stdout until the terminal is restored, nothing after that: the thread that draws must not
/// write over what a panic of another one has said.
struct Shown;

impl Write for Shown {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match *is_shown() {
            true => io::stdout().write(bytes),
            false => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match *is_shown() {
            true => io::stdout().flush(),
            false => Ok(()),
        }
    }
}

fn is_shown() -> MutexGuard<'static, bool> {
    IS_SHOWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Once: a second one would move the cursor to where the first one found it. Ignores errors: a
/// terminal that is gone (SIGHUP) needs no restore.
fn restore() {
    let mut is_shown = is_shown();
    if !std::mem::take(&mut *is_shown) {
        return;
    }
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}
