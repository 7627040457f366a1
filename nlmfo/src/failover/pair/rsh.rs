//! Running nlmfo on the other node.

use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// The other node, and how to get there.
#[derive(Clone, Debug)]
pub struct Rsh {
    /// The program and its first arguments; it takes a host and a line for the shell there,
    /// as ssh does.
    pub program: Vec<String>,
    pub host: String,
    /// nlmfo's path there.
    pub nlmfo: String,
}

/// What a command on the other node came to.
#[derive(Debug)]
pub struct Finished {
    /// None if a signal ended it.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Debug, thiserror::Error)]
pub enum RshError {
    #[error("{program} cannot be run: {source}")]
    Start {
        program: String,
        source: std::io::Error,
    },
    #[error("`{command}` did not end on {host} within {} s; what came of it there is not known", .after.as_secs())]
    Deadline {
        command: String,
        host: String,
        after: Duration,
    },
    #[error("talking to {host}: {source}; what came of `{command}` there is not known")]
    Lost {
        command: String,
        host: String,
        source: std::io::Error,
    },
}

impl Rsh {
    /// Runs nlmfo there with these arguments and this standard input, and waits for its end.
    pub async fn nlmfo(
        &self,
        arguments: &[String],
        stdin: &[u8],
        deadline: Duration,
    ) -> Result<Finished, RshError> {
        let line = command_line(&self.nlmfo, arguments);
        let Some((program, first)) = self.program.split_first() else {
            return Err(RshError::Start {
                program: "the remote shell".to_owned(),
                source: std::io::Error::other("--rsh names none"),
            });
        };
        let mut child = Command::new(program)
            .args(first)
            .arg(&self.host)
            .arg(&line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| RshError::Start {
                program: program.clone(),
                source,
            })?;
        let mut input = child.stdin.take().expect("it is piped");
        let feed = async move {
            // Whoever ends without reading says why by its exit code.
            let _ = input.write_all(stdin).await;
            // With it, the input ends.
            drop(input);
        };
        let run = async { tokio::join!(child.wait_with_output(), feed).0 };
        match timeout(deadline, run).await {
            Err(_) => Err(RshError::Deadline {
                command: line,
                host: self.host.clone(),
                after: deadline,
            }),
            Ok(Err(source)) => Err(RshError::Lost {
                command: line,
                host: self.host.clone(),
                source,
            }),
            Ok(Ok(output)) => Ok(Finished {
                code: output.status.code(),
                stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
                stderr: String::from_utf8_lossy(&output.stderr)
                    .trim_end()
                    .to_owned(),
            }),
        }
    }
}

/// A line for a shell that makes these words of it.
fn command_line(program: &str, arguments: &[String]) -> String {
    let words = std::iter::once(program).chain(arguments.iter().map(String::as_str));
    // Words have no NUL: they were arguments of ours.
    shlex::try_join(words).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Rsh {
        Rsh {
            program: ["sh", "-c", script].map(str::to_owned).into(),
            host: "b".to_owned(),
            nlmfo: "nlmfo".to_owned(),
        }
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread();
        { runtime }.enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn host_line_and_input_arrive_and_the_exit_code_comes_back() {
        // `sh -c SCRIPT HOST LINE`: $0 is the host, $1 the line.
        let rsh = sh("echo \"$0: $1\"; cat; echo oops >&2; exit 5");
        let arguments = ["failover", "--expect", "-", "it's here"].map(str::to_owned);
        let run = rsh.nlmfo(&arguments, b"record", Duration::from_secs(30));
        let finished = block_on(run).unwrap();
        assert_eq!(finished.code, Some(5));
        assert_eq!(finished.stderr, "oops");
        let line = "b: nlmfo failover --expect - \"it's here\"\nrecord";
        assert_eq!(finished.stdout, line);
    }

    #[test]
    fn who_hangs_is_given_up_and_who_reads_nothing_is_no_error() {
        let hangs = sh("exec sleep 600");
        let run = hangs.nlmfo(&[], b"", Duration::from_millis(50));
        let error = block_on(run).unwrap_err().to_string();
        assert!(error.contains("did not end on b"), "{error}");
        let large = vec![b'x'; 1 << 20];
        let deaf = sh("exec <&-; exit 4");
        let run = deaf.nlmfo(&[], &large, Duration::from_secs(30));
        assert_eq!(block_on(run).unwrap().code, Some(4));
        let none = Rsh {
            program: vec!["/nonexistent/ssh".to_owned()],
            ..sh("")
        };
        let error = block_on(none.nlmfo(&[], b"", Duration::from_secs(1))).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/ssh"), "{error}");
    }
}
