//! The one writer of everything that a command prints.
//!
//! Output never changes what a command does. A command that changes something has done it,
//! and knows its exit status, before it prints; a failed write changes neither. Messages
//! during the work ([`note`], [`progress`], the log) are dropped rather than waited for.
//!
//! A listing is there to be read: it ends with status 1 if it cannot be written, but
//! quietly if its reader has gone, with the status that it would have had.

mod json;
mod stream;
mod text;

use std::fmt::{self, Display, Write as _};
use std::io::{self, BufWriter, Write as _};
use std::path::Path;

use anyhow::anyhow;
use serde::Serialize;
use tracing_subscriber::fmt::MakeWriter;

use self::stream::Stream;
use crate::causes::chain;
use crate::exit::Failure;
use crate::foreign::Shown;

pub(crate) use self::json::{Rendered, text as json_text, write as write_json};
pub(crate) use self::text::{Text, is_dumb, is_utf8};

/// Prints a listing.
///
/// # Errors
/// It cannot be written, for another reason than a missing reader.
pub(crate) fn list(print: impl FnOnce(&mut Text) -> fmt::Result) -> Result<(), Failure> {
    listed(print_text(print)).map(|_| ())
}

/// Prints a listing as one JSON object on its own line; false if the reader is gone.
///
/// # Errors
/// As [`list`].
pub(crate) fn list_json(value: &impl Serialize) -> Result<bool, Failure> {
    listed(print_json(value))
}

/// Prints the report of a command that changed something. If it cannot be written, standard
/// error says so, and names the file where it is stored.
pub(crate) fn report(kept: Option<&Path>, print: impl FnOnce(&mut Text) -> fmt::Result) {
    reported(kept, print_text(print));
}

/// [`report`] as one JSON object on its own line.
pub(crate) fn report_json(kept: Option<&Path>, value: &impl Serialize) {
    reported(kept, print_json(value));
}

/// Prints a message on standard error, with the prefix `nlmfo: `.
pub(crate) fn note(text: impl Display) {
    Stream::Err.offer(safe_line(&format!("nlmfo: {text}")).as_bytes());
}

/// Prints progress on standard error, for a person who waits; scripts read the report.
pub(crate) fn progress(text: impl Display) {
    if Stream::Err.is_terminal() {
        Stream::Err.offer(safe_line(&text.to_string()).as_bytes());
    }
}

/// Text on standard error as it is, with its newline.
pub(crate) fn warn(text: impl Display) {
    Stream::Err.offer(text::safe(&format!("{text}\n"), !is_utf8()).as_bytes());
}

/// Prints the error of a failed command with its causes, each once.
pub fn fail(error: &anyhow::Error) {
    let _ = Stream::Err.write_all(safe_line(&format!("nlmfo: {}", chain(&**error))).as_bytes());
}

/// Prints the argument parser's message and returns the exit status: help and the version are
/// listings, a wrong argument is 2.
pub fn usage(error: &clap::Error) -> u8 {
    let code = u8::try_from(error.exit_code()).unwrap_or(2);
    let said = match error.use_stderr() {
        true => {
            let _ = Stream::Err.write_all(text::safe(&error.to_string(), !is_utf8()).as_bytes());
            return code;
        }
        false => list(|out| write!(out, "{error}")),
    };
    match said {
        Ok(()) => code,
        Err(failure) => {
            fail(&failure.error);
            failure.exit as u8
        }
    }
}

/// The log's writer: standard error, line by line.
pub struct Log;

impl MakeWriter<'_> for Log {
    type Writer = Log;

    fn make_writer(&self) -> Log {
        Log
    }
}

/// Accepts everything: if the writer fails, the log's crate writes to standard error itself,
/// and panics if that is closed.
impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let line = String::from_utf8_lossy(bytes);
        Stream::Err.offer(text::safe(&line, !is_utf8()).as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Adds a newline and indents further lines, so that none of them looks like a message of ours.
fn safe_line(text: &str) -> String {
    let line = format!("{}\n", text.trim_end().replace('\n', "\n    "));
    text::safe(&line, !is_utf8()).into_owned()
}

fn print_text(print: impl FnOnce(&mut Text) -> fmt::Result) -> io::Result<()> {
    let mut text = Text::new(Stream::Out);
    // An error is kept until the end.
    let _ = print(&mut text);
    text.finish()
}

fn print_json(value: &impl Serialize) -> io::Result<()> {
    let mut out = BufWriter::new(Stream::Out);
    let written = json::write(&mut out, value).and_then(|()| out.flush());
    // What is left would be tried again.
    let (_stream, _lost) = out.into_parts();
    written
}

/// Whether the reader is still there.
fn listed(written: io::Result<()>) -> Result<bool, Failure> {
    match written {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(anyhow!(error)
            .context("cannot write to standard output")
            .into()),
    }
}

fn reported(kept: Option<&Path>, written: io::Result<()>) {
    match written {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        Err(error) => {
            let kept = kept.map_or_else(String::new, |path| {
                format!("; it is stored in {}", path.shown())
            });
            note(format_args!(
                "cannot write the report to standard output: {error}{kept}"
            ));
        }
    }
}
