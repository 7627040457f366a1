//! Shows the progress of a long step: a spinner with the elapsed time on a terminal, otherwise plain
//! lines.

use std::{
    io::{IsTerminal as _, stderr},
    time::{Duration, Instant},
};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// Runs `work` under the heading `what`, to stderr.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    if stderr().is_terminal() {
        let style = ProgressStyle::with_template("{spinner} {msg} [{elapsed}]")
            .expect("the template is well formed");
        let bar = ProgressBar::new_spinner()
            .with_style(style)
            .with_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        let result = work();
        bar.finish_and_clear();
        if result.is_ok() {
            eprintln!("{what}: {:.1} s", start.elapsed().as_secs_f32());
        }
        result
    } else {
        eprintln!("{what} …");
        let result = work();
        if result.is_ok() {
            eprintln!("{what}: done in {:.1} s", start.elapsed().as_secs_f32());
        }
        result
    }
}
