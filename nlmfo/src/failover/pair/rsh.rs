//! Runs nlmfo on the other node.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

use crate::foreign::{Name, Shown, on_one_line};

/// The other node, and how to run commands there.
#[derive(Clone, Debug)]
pub struct Rsh {
    /// The program and its first arguments. Like ssh, it takes a host and a shell command line.
    pub program: Vec<OsString>,
    pub host: String,
    /// Path of nlmfo there.
    pub nlmfo: OsString,
}

/// Why there is no such program.
#[derive(Debug, thiserror::Error)]
#[error("--rsh {0} is not a command: a quote is not closed")]
pub struct NotACommand(Name);

/// The result of a command on the other node.
#[derive(Debug)]
pub struct Finished {
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

/// Why a command on the other node did not run.
#[derive(Debug, thiserror::Error)]
pub enum RshError {
    #[error("cannot run {program}")]
    Start {
        program: Name,
        source: std::io::Error,
    },
    #[error("`{command}` did not finish on {host} within {} s; its result is unknown", .after.as_secs())]
    Deadline {
        command: Name,
        host: String,
        after: Duration,
    },
    #[error("the result of `{command}` on {host} is unknown")]
    Lost {
        command: Name,
        host: String,
        source: std::io::Error,
    },
}

impl Rsh {
    /// `command` is split into words as a shell does.
    ///
    /// # Errors
    /// If it cannot be split, or has no word.
    pub fn new(command: &OsStr, host: &str, nlmfo: &OsStr) -> Result<Self, NotACommand> {
        let words = shlex::bytes::split(command.as_bytes()).filter(|words| !words.is_empty());
        let words = words.ok_or_else(|| NotACommand(command.shown()))?;
        Ok(Rsh {
            program: words.into_iter().map(OsString::from_vec).collect(),
            host: host.to_owned(),
            nlmfo: nlmfo.to_owned(),
        })
    }

    /// Runs nlmfo there with these arguments and this standard input, and waits for its end.
    pub async fn nlmfo(
        &self,
        arguments: &[OsString],
        stdin: &[u8],
        deadline: Duration,
    ) -> Result<Finished, RshError> {
        let line = command_line(&self.nlmfo, arguments);
        let Some((program, first)) = self.program.split_first() else {
            return Err(RshError::Start {
                program: Name::from("the remote shell"),
                source: std::io::Error::other("--rsh is empty"),
            });
        };
        // ssh parses options up to the host; other programs may not know `--`.
        let is_ssh = Path::new(program).file_name() == Some(OsStr::new("ssh"));
        let mut child = Command::new(program)
            .args(first)
            .args(is_ssh.then_some("--"))
            .arg(&self.host)
            .arg(&line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| RshError::Start {
                program: program.shown(),
                source,
            })?;
        let mut input = child.stdin.take().expect("it is piped");
        let feed = async move {
            // A program that does not read its input reports that by its exit code.
            let _ = input.write_all(stdin).await;
            // This closes the input.
            drop(input);
        };
        let run = async { tokio::join!(child.wait_with_output(), feed).0 };
        match timeout(deadline, run).await {
            Err(_) => Err(RshError::Deadline {
                command: line.shown(),
                host: self.host.clone(),
                after: deadline,
            }),
            Ok(Err(source)) => Err(RshError::Lost {
                command: line.shown(),
                host: self.host.clone(),
                source,
            }),
            Ok(Ok(output)) => Ok(Finished {
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: said(&output.stderr),
            }),
        }
    }
}

/// Quotes the words as one shell command line.
fn command_line(program: &OsStr, arguments: &[OsString]) -> OsString {
    let words = std::iter::once(program).chain(arguments.iter().map(OsString::as_os_str));
    // Command-line arguments contain no NUL.
    let line = shlex::bytes::try_join(words.map(OsStr::as_bytes)).unwrap_or_default();
    OsString::from_vec(line)
}

/// Another program's output on one line, escaped so that it cannot imitate ours.
pub fn said(bytes: &[u8]) -> String {
    on_one_line(String::from_utf8_lossy(bytes).trim_end()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Rsh {
        Rsh {
            program: ["sh", "-c", script].map(OsString::from).into(),
            host: "b".to_owned(),
            nlmfo: "nlmfo".into(),
        }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread();
        { runtime }.enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn a_command_is_split_as_a_shell_does() {
        let new = |command: &str| Rsh::new(command.as_ref(), "b", "nlmfo".as_ref());
        let rsh = new("ssh -o 'ProxyCommand=nc x'").unwrap();
        assert_eq!(rsh.program, ["ssh", "-o", "ProxyCommand=nc x"]);
        for wrong in ["ssh 'b", " "] {
            let error = new(wrong).unwrap_err().to_string();
            assert!(error.contains("is not a command"), "{error}");
        }
    }

    #[test]
    fn host_line_and_input_arrive_and_the_exit_code_comes_back() {
        // `sh -c SCRIPT HOST LINE`: $0 is the host, $1 the line.
        let rsh = sh("echo \"$0: $1\"; cat; echo oops >&2; exit 5");
        let arguments = ["failover", "--expect", "-", "it's here"].map(OsString::from);
        let run = rsh.nlmfo(&arguments, b"record", Duration::from_secs(30));
        let finished = block_on(run).unwrap();
        assert_eq!(finished.code, Some(5));
        assert_eq!(finished.stderr, "oops");
        let line = "b: nlmfo failover --expect - \"it's here\"\nrecord";
        assert_eq!(finished.stdout, line);
    }

    #[test]
    fn who_hangs_is_given_up_and_who_reads_nothing_is_no_error() {
        let odd = OsString::from_vec(b"/caf\xe9".to_vec());
        let echo = sh("printf %s \"$1\" >&2");
        let arguments = [odd];
        let run = echo.nlmfo(&arguments, b"", Duration::from_secs(30));
        assert_eq!(block_on(run).unwrap().stderr, "nlmfo '/caf\u{fffd}'");
        let hangs = sh("exec sleep 600");
        let run = hangs.nlmfo(&[], b"", Duration::from_millis(50));
        let error = block_on(run).unwrap_err().to_string();
        assert!(error.contains("did not finish on b"), "{error}");
        let large = vec![b'x'; 1 << 20];
        let deaf = sh("exec <&-; exit 4");
        let run = deaf.nlmfo(&[], &large, Duration::from_secs(30));
        assert_eq!(block_on(run).unwrap().code, Some(4));
        let none = Rsh {
            program: vec!["/nonexistent/ssh".into()],
            ..sh("")
        };
        let error = block_on(none.nlmfo(&[], b"", Duration::from_secs(1))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ssh"), "{error}");
    }
}
