//! What `nlmfo watch` leaves behind on its terminal, however it ends.
//!
//! The screen runs in a terminal of its own, as another process of this program: what
//! a panic and a signal do, they do to a whole process.

use std::env;
use std::process::{Command, ExitCode};
use std::sync::mpsc::Receiver;

use anyhow::{Result, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::sys::signal::Signal;
use nlmfo::ui::draw::Theme;
use nlmfo::ui::run::screen;
use nlmfo::ui::state::{Effect, Message};
use nlmfo_tests::guest::pty::Pty;

/// Tells this program to be the screen, and whether its source panics.
const BE_THE_SCREEN: &str = "NLMFO_TEST_SCREEN";
const PANICS: &str = "panics";
const LASTS: &str = "lasts";

const LAST_WORDS: &str = "the source has panicked on purpose";
/// What a Rust program that panicked exits with.
const PANICKED: i32 = 101;

fn main() -> ExitCode {
    if let Ok(source) = env::var(BE_THE_SCREEN) {
        return be_the_screen(&source);
    }
    let signals = [
        Signal::SIGHUP,
        Signal::SIGINT,
        Signal::SIGQUIT,
        Signal::SIGTERM,
    ];
    let mut trials = vec![Trial::test("after_a_panic", || trial(panic))];
    trials.extend(signals.map(|signal| {
        let name = format!("after_{}", signal.as_str().to_lowercase());
        Trial::test(name, move || trial(|| ends_by(signal)))
    }));
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn trial(test: impl FnOnce() -> Result<()>) -> Result<(), Failed> {
    test().map_err(|error| format!("{error:#}").into())
}

fn be_the_screen(source: &str) -> ExitCode {
    let panics = source == PANICS;
    let theme = Theme {
        colour: false,
        ascii: true,
    };
    let source = move |effects: Receiver<Effect>, _: &mut dyn FnMut(Message) -> bool| {
        assert!(!panics, "{LAST_WORDS}");
        // Until the screen is gone.
        while effects.recv().is_ok() {}
        Ok::<(), std::convert::Infallible>(())
    };
    match screen(&theme, source) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

fn start(source: &str) -> Result<Pty> {
    let mut command = Command::new(env::current_exe()?);
    command.env(BE_THE_SCREEN, source);
    // It takes its time to print: what is drawn meanwhile must not show.
    command.env("RUST_BACKTRACE", "1");
    Pty::spawn(command, 80, 24)
}

fn panic() -> Result<()> {
    let mut program = start(PANICS)?;
    let ended = program.ended()?;
    ensure!(
        ended == (Some(PANICKED), true),
        "{ended:?}: {}",
        program.text()
    );
    // On the ordinary screen, where they stay.
    program.shows("what the panic said", |text| text.contains(LAST_WORDS))?;
    Ok(())
}

fn ends_by(signal: Signal) -> Result<()> {
    let mut program = start(LASTS)?;
    // It has the terminal, and its handlers, by then.
    program.shows("the empty screen", |text| text.contains("quit"))?;
    program.signal(signal)?;
    let ended = program.ended()?;
    ensure!(ended == (Some(0), true), "{ended:?}: {}", program.text());
    Ok(())
}
