//! Programs of the distribution: `ip`, `mount`, nfs-utils.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tokio::time::timeout;

use crate::foreign::{Shown, on_one_line};

/// Maximum time for a program that ends by itself.
pub const LIMIT: Duration = Duration::from_mins(1);

/// How much of a program's output is read, in bytes.
const MOST_SAID: u64 = 4096;

const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("cannot run `{command}`")]
    Start { command: String, source: io::Error },
    #[error("`{command}` failed ({status}): {said}")]
    Failed {
        command: String,
        status: ExitStatus,
        said: String,
    },
    #[error("`{command}` did not end within {} s", .limit.as_secs_f64())]
    Hangs { command: String, limit: Duration },
}

/// `PATH` and root's directories.
fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// A program that may be in a directory that only root's PATH contains.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", search_path()).process_group(0);
    command
}

/// Whether the program exists.
pub fn exists(name: &str) -> bool {
    env::split_paths(&search_path()).any(|folder| folder.join(name).is_file())
}

/// Runs a program, which must succeed.
pub fn run<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> Result<(), ProgramError> {
    run_with_input(name, arguments, "")
}

/// [`run`] with text for its standard input.
pub fn run_with_input<S: AsRef<OsStr>>(
    name: &str,
    arguments: &[S],
    input: &str,
) -> Result<(), ProgramError> {
    let mut command = program(name);
    command.args(arguments);
    let run = Run::of(&mut command, input)?;
    let status = run.wait(&mut command, LIMIT)?;
    run.ended(status)
}

/// The start of what a program writes to its standard output, however it ends.
pub fn output<S: AsRef<OsStr>>(
    name: &str,
    arguments: &[S],
    limit: Duration,
) -> Result<Vec<u8>, ProgramError> {
    let mut command = program(name);
    command.args(arguments);
    let mut run = Run::of(&mut command, "")?;
    command.stderr(Stdio::null());
    run.wait(&mut command, limit)?;
    run.said().map_err(|error| run.failed(error))
}

/// [`run`] in a task, within `limit`. A program that takes longer is not killed, since it may be
/// stopping or starting a service. It receives signals of the terminal.
pub async fn run_within<S: AsRef<OsStr>>(
    name: &str,
    arguments: &[S],
    limit: Duration,
) -> Result<(), ProgramError> {
    let mut command = Command::new(name);
    command.env("PATH", search_path()).args(arguments);
    let run = Run::of(&mut command, "")?;
    let child = tokio::process::Command::from(command).spawn();
    let mut child = child.map_err(|error| run.failed(error))?;
    match timeout(limit, child.wait()).await {
        Err(_) => Err(run.hangs(limit)),
        Ok(Err(error)) => Err(run.failed(error)),
        Ok(Ok(status)) => run.ended(status),
    }
}

/// A run of a program. Its output goes to a file: a process that it leaves behind could keep a pipe
/// open.
struct Run {
    /// The command as text.
    line: String,
    said: File,
}

impl Run {
    fn of(command: &mut Command, input: &str) -> Result<Self, ProgramError> {
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words: Vec<String> = words.map(|word| word.shown().to_string()).collect();
        let mut line = words.join(" ");
        if !input.is_empty() {
            line = format!("{line}: {}", input.trim_end());
        }
        let mut files = || {
            let (said, mut given) = (tempfile::tempfile()?, tempfile::tempfile()?);
            given.write_all(input.as_bytes())?;
            given.rewind()?;
            (command.stdin(given).stdout(said.try_clone()?)).stderr(said.try_clone()?);
            Ok(said)
        };
        match files() {
            Ok(said) => Ok(Run { line, said }),
            Err(source) => Err(ProgramError::Start {
                command: line,
                source,
            }),
        }
    }

    /// Runs it to its end.
    fn wait(&self, command: &mut Command, limit: Duration) -> Result<ExitStatus, ProgramError> {
        let mut child = command.spawn().map_err(|error| self.failed(error))?;
        let mut ended = None;
        let waited = wait_for(limit, || {
            ended = child.try_wait()?;
            Ok(ended.is_some())
        });
        waited.map_err(|error| self.failed(error))?;
        ended.ok_or_else(|| {
            // One that is stuck in the kernel ignores this: it is not waited for.
            let _ = child.kill();
            self.hangs(limit)
        })
    }

    /// The start of its output.
    fn said(&mut self) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.said.rewind()?;
        (&self.said).take(MOST_SAID).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn failed(&self, source: io::Error) -> ProgramError {
        ProgramError::Start {
            command: self.line.clone(),
            source,
        }
    }

    fn hangs(&self, limit: Duration) -> ProgramError {
        ProgramError::Hangs {
            command: self.line.clone(),
            limit,
        }
    }

    /// It must have succeeded.
    fn ended(mut self, status: ExitStatus) -> Result<(), ProgramError> {
        if status.success() {
            return Ok(());
        }
        let said = self.said().map_err(|error| self.failed(error))?;
        let said = String::from_utf8_lossy(&said).trim().replace('\n', "; ");
        Err(ProgramError::Failed {
            command: self.line,
            status,
            said: on_one_line(&said).into_owned(),
        })
    }
}

/// Polls until `is_so`, for at most `limit`. Returns whether it was.
pub fn wait_for<E>(limit: Duration, mut is_so: impl FnMut() -> Result<bool, E>) -> Result<bool, E> {
    let began = Instant::now();
    loop {
        if is_so()? {
            return Ok(true);
        }
        if began.elapsed() >= limit {
            return Ok(false);
        }
        thread::sleep(POLL_INTERVAL);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_quotes_the_command_and_its_words() {
        let error = run("sh", &["-c", "echo one >&2; echo two; exit 3"]).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("sh -c") && text.ends_with("one; two"),
            "{text}"
        );
        run_with_input("sh", &["-c", "read x; [ $x = y ]"], "y\n").unwrap();
        assert!(exists("sh") && !exists("no-such-program"));
    }

    #[test]
    fn output_is_what_a_program_printed_until_it_hangs() {
        let run = |script: &str, limit| output("sh", &["-c", script], limit);
        let said = run("echo one; echo two >&2; exit 3", LIMIT);
        assert_eq!(said.unwrap(), b"one\n");
        let error = run("exec sleep 60", Duration::from_millis(10)).unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with("did not end within 0.01 s"), "{text}");
        let none = output("no-such-program", &[""; 0], LIMIT);
        assert!(matches!(none, Err(ProgramError::Start { .. })), "{none:?}");
    }

    #[tokio::test]
    async fn a_program_that_fails_or_hangs_is_named() {
        let run = async |script: &str, limit| run_within("sh", &["-c", script], limit).await;
        let long = Duration::from_mins(1);
        run("true", long).await.unwrap();
        // What it leaves behind does not hold us up.
        run("sleep 60 & true", long).await.unwrap();
        let error = run("echo broken >&2; exit 3", long).await.unwrap_err();
        let text = error.to_string();
        assert!(text.ends_with("(exit status: 3): broken"), "{text}");
        let error = run("sleep 60", Duration::from_millis(10)).await;
        let text = error.unwrap_err().to_string();
        assert!(
            text.ends_with("`sh -c sleep 60` did not end within 0.01 s"),
            "{text}"
        );
        let none = run_within("no-such-program", &[""; 0], long).await;
        assert!(matches!(none, Err(ProgramError::Start { .. })), "{none:?}");
    }
}
