//! Sets up the terminal and restores it: on a normal end, on an error, and on a panic in any
//! thread.
#![expect(
    clippy::disallowed_methods,
    reason = "the screen's own, errors of which end it"
)]

use std::io::{self, IsTerminal, Stdout};
use std::sync::Once;

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};

use super::draw::{Theme, draw};
use super::state::App;

/// The terminal in raw mode with its alternate screen. Dropping it restores it.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
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
        let entered = execute!(io::stdout(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(io::stdout())));
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

/// Ignores errors: a terminal that is gone (SIGHUP) needs no restore.
fn restore() {
    let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}
