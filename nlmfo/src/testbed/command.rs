//! Running the distribution's tools, with errors that quote them.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::wait::{DEADLINE, Seen, until_for};

/// What a finished command left behind.
#[derive(Clone, Debug)]
pub struct Finished {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output, lossy where it is not UTF-8.
    pub stdout: String,
    /// Its standard error, likewise.
    pub stderr: String,
}

impl Finished {
    /// The exit code, or 128 + the signal that ended it, as a shell counts.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or_default())
    }
}

/// A program of the distribution, which may be in a directory that only root's PATH contains.
pub fn tool(program: impl AsRef<Path>) -> Command {
    let mut command = Command::new(program.as_ref());
    command.env("PATH", search_path());
    command
}

/// `PATH` and root's directories.
pub fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}

/// Runs a command to its end, whatever its exit status.
///
/// Output goes to files and not to pipes: a daemon that the command leaves behind may keep its standard
/// error open forever.
///
/// # Errors
/// If it cannot be started, or does not end within [`DEADLINE`] (it is killed then).
pub fn finish(command: &mut Command, stdin: &str) -> Result<Finished> {
    finish_within(DEADLINE, command, stdin)
}

/// [`finish`] with a time limit of its own.
///
/// # Errors
/// As [`finish`], with this limit.
pub fn finish_within(limit: Duration, command: &mut Command, stdin: &str) -> Result<Finished> {
    let mut out = tempfile::tempfile().context("temporary file for a command's output")?;
    let mut err = tempfile::tempfile().context("temporary file for a command's errors")?;
    let mut input = tempfile::tempfile().context("temporary file for a command's input")?;
    input.write_all(stdin.as_bytes())?;
    input.rewind()?;
    let mut child = command
        .stdin(input)
        .stdout(out.try_clone()?)
        .stderr(err.try_clone()?)
        // An interrupt takes effect between commands.
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {command:?}"))?;
    let ended = until_for(limit, &format!("{command:?} to end"), || {
        Ok(match child.try_wait()? {
            Some(status) => Seen::Yes(status),
            None => Seen::No("still running".into()),
        })
    });
    let status = match ended {
        Ok(status) => status,
        Err(error) => {
            // A process stuck in the kernel ignores this; do not wait for it.
            let _ = child.kill();
            return Err(error.context(contents(&mut err)?));
        }
    };
    Ok(Finished {
        status,
        stdout: contents(&mut out)?,
        stderr: contents(&mut err)?,
    })
}

/// Runs a command that must succeed and returns what it printed.
///
/// # Errors
/// The command line, its exit status and its standard error.
pub fn run(command: &mut Command) -> Result<String> {
    run_with_input(command, "")
}

/// [`run`] with text for the command's standard input.
pub(crate) fn run_with_input(command: &mut Command, stdin: &str) -> Result<String> {
    let finished = finish(command, stdin)?;
    if !finished.status.success() {
        bail!(
            "{command:?}: {}: {}{}",
            finished.status,
            finished.stderr.trim(),
            finished.stdout.trim()
        );
    }
    Ok(finished.stdout)
}

/// A command without a terminal or output, for daemons in the foreground.
pub fn silent(mut command: Command) -> Command {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0);
    command
}

fn contents(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_and_input_pass_through() {
        assert_eq!(
            run_with_input(&mut Command::new("cat"), "a\nb\n").unwrap(),
            "a\nb\n"
        );
    }

    #[test]
    fn a_failure_quotes_the_command_and_its_words() {
        let error = run(Command::new("sh").args(["-c", "echo broken >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("echo broken") && text.contains("exit status: 3"));
        assert!(text.ends_with("broken"));
    }

    #[test]
    fn a_daemon_that_keeps_the_output_open_does_not_hold_us_up() {
        let started = std::time::Instant::now();
        run(Command::new("sh").args(["-c", "sleep 20 & exit 0"])).unwrap();
        assert!(started.elapsed().as_secs() < 10);
    }

    #[test]
    fn a_signal_counts_as_a_shell_counts_it() {
        let finished = finish(Command::new("sh").args(["-c", "kill -9 $$"]), "").unwrap();
        assert_eq!(finished.code(), 137);
    }
}
