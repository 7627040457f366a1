//! Runs the screen: keys, signals and ticks come from their own threads, one loop updates the
//! state and draws.

use std::io;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;

use ratatui::crossterm::event::{self, Event};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;

use super::draw::Theme;
use super::keys;
use super::state::{App, Effect, Message};
use super::terminal::Screen;

/// Length of the message queue; sources wait while it is full.
const WAITING: usize = 16;

/// Shows what `source` sends until the operator or a signal ends it, or the source ends with an error.
/// The source runs on a thread of its own. It gets the screen's requests and sends messages; sending
/// returns false when the receiver is gone.
///
/// # Errors
/// If the terminal cannot be set up or drawn to, or the source ends with an error.
pub fn screen<E, S>(theme: &Theme, source: S) -> Result<(), RunError<E>>
where
    E: Send + 'static,
    S: FnOnce(Receiver<Effect>, &mut dyn FnMut(Message) -> bool) -> Result<(), E> + Send + 'static,
{
    let (send, messages) = mpsc::sync_channel(WAITING);
    let (ask, effects) = mpsc::channel();
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGQUIT, SIGHUP]).map_err(RunError::Terminal)?;
    let mut screen = Screen::enter().map_err(RunError::Terminal)?;

    let to = send.clone();
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            let _ = to.send(Message::Quit);
        }
    });
    let to = send.clone();
    thread::spawn(move || read_keys(&to));
    let source = thread::spawn(move || {
        // Sent however the source ends, by a panic too.
        let end = EndsWith(send.clone());
        let outcome = source(effects, &mut |message| send.send(message).is_ok());
        drop(end);
        outcome
    });

    let mut app = App::default();
    let shown = run(&mut app, theme, &mut screen, &messages, |effect| {
        let _ = ask.send(effect);
    });
    // Dropping these ends the source.
    drop((ask, messages, screen));
    shown.map_err(RunError::Terminal)?;
    match source.join() {
        Ok(outcome) => outcome.map_err(RunError::Source),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Why the screen ended.
#[derive(Debug)]
pub enum RunError<E> {
    /// The terminal, or the signal handlers, failed.
    Terminal(io::Error),
    /// The source ended with this error.
    Source(E),
}

fn run(
    app: &mut App,
    theme: &Theme,
    screen: &mut Screen,
    messages: &Receiver<Message>,
    mut ask: impl FnMut(Effect),
) -> io::Result<()> {
    screen.show(app, theme)?;
    while let Ok(message) = messages.recv() {
        // Handle all queued messages before drawing.
        for message in std::iter::once(message).chain(messages.try_iter()) {
            match app.update(message) {
                Some(Effect::Quit) => return Ok(()),
                Some(effect) => ask(effect),
                None => {}
            }
        }
        screen.show(app, theme)?;
    }
    Ok(())
}

fn read_keys(to: &SyncSender<Message>) {
    loop {
        let message = match event::read() {
            Ok(Event::Key(key)) => keys::of(key).map(Message::Key),
            Ok(Event::Resize(..)) => Some(Message::Resize),
            Ok(_) => None,
            // The terminal is gone; a signal may follow.
            Err(_) => Some(Message::Quit),
        };
        let Some(message) = message else { continue };
        let last = matches!(message, Message::Quit);
        if to.send(message).is_err() || last {
            return;
        }
    }
}

/// Ends the loop when it is dropped.
struct EndsWith(SyncSender<Message>);

impl Drop for EndsWith {
    fn drop(&mut self) {
        let _ = self.0.send(Message::Quit);
    }
}
