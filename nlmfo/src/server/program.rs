//! Programs of the distribution: `ip`, `mount`, nfs-utils.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Seek, Write};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum time for a program that ends by itself.
const LIMIT: Duration = Duration::from_secs(60);

const POLL_INTERVAL: Duration = Duration::from_millis(10);

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
    #[error("`{command}` did not end within {LIMIT:?}")]
    Hangs { command: String },
}

/// `PATH` and root's directories.
fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin:/usr/bin:/bin");
    path
}

/// A program that lies where only root looks, perhaps.
pub fn program(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", search_path()).process_group(0);
    command
}

/// Whether there is such a program.
pub fn exists(name: &str) -> bool {
    env::split_paths(&search_path()).any(|folder| folder.join(name).is_file())
}

/// Runs a program to its end, which must be a good one.
pub fn run<S: AsRef<OsStr>>(name: &str, arguments: &[S]) -> Result<(), ProgramError> {
    run_with_input(name, arguments, "")
}

/// [`run`] with text for its standard input. Its output goes to files: what it leaves behind
/// may keep a pipe open.
pub fn run_with_input<S: AsRef<OsStr>>(
    name: &str,
    arguments: &[S],
    input: &str,
) -> Result<(), ProgramError> {
    let mut command = program(name);
    command.args(arguments);
    let words = arguments.iter().map(|word| word.as_ref().to_string_lossy());
    let words: Vec<_> = words.collect();
    let line = || match input.is_empty() {
        true => format!("{name} {}", words.join(" ")),
        false => format!("{name} {}: {}", words.join(" "), input.trim_end()),
    };
    let failed = |source| ProgramError::Start {
        command: line(),
        source,
    };
    let file = || tempfile::tempfile().map_err(failed);
    let (mut said, mut given) = (file()?, file()?);
    given.write_all(input.as_bytes()).map_err(failed)?;
    given.rewind().map_err(failed)?;
    let copy = || said.try_clone().map(Stdio::from).map_err(failed);
    let (out, err) = (copy()?, copy()?);
    let mut child = (command.stdin(given).stdout(out).stderr(err).spawn()).map_err(failed)?;
    let began = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if began.elapsed() > LIMIT {
            // One that is stuck in the kernel ignores this: it is not waited for.
            let _ = child.kill();
            return Err(ProgramError::Hangs { command: line() });
        }
        thread::sleep(POLL_INTERVAL);
    };
    if status.success() {
        return Ok(());
    }
    let mut bytes = Vec::new();
    let read = said.rewind().and_then(|()| said.read_to_end(&mut bytes));
    read.map_err(failed)?;
    Err(ProgramError::Failed {
        command: line(),
        status,
        said: String::from_utf8_lossy(&bytes).trim().replace('\n', "; "),
    })
}

/// Looks again and again until `is_so`, for at most `limit`: whether it came to be.
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
}
