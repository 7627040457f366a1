//! How a server stops and starts.

use std::ffi::OsString;
use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::timeout;

use crate::failover::pair::rsh::said;
use crate::foreign::Shown;

#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error("cannot run {program}")]
    Run {
        program: String,
        source: std::io::Error,
    },
    #[error("`{command}` failed with {status}: {said}")]
    Failed {
        command: String,
        status: String,
        said: String,
    },
    #[error("`{command}` did not end within {} s", .after.as_secs_f64())]
    Deadline { command: String, after: Duration },
    #[error("{0}")]
    Other(String),
}

/// A server that stops and starts as a whole. Its kernel files are those of this process's
/// namespaces.
pub trait Server: Sync {
    /// What it is and how it is stopped and started, for reports.
    fn title(&self) -> String;

    /// Stops its threads. Also if they are stopped already.
    fn stop(&self) -> impl Future<Output = Result<(), ServerError>> + Send;

    /// Starts what must run before its threads do: nfsdcld, which listens when this returns,
    /// and statd. Returns what is missing all the same.
    fn prepare(&self) -> impl Future<Output = Vec<String>> + Send;

    /// Starts its threads. Also if they run already.
    fn start(&self) -> impl Future<Output = Result<(), ServerError>> + Send;

    /// Brings up its addresses, once its grace is seen.
    fn appear(&self) -> impl Future<Output = Result<(), ServerError>> + Send {
        async { Ok(()) }
    }

    /// Whether it serves this address. Other servers of the node have their own.
    fn serves(&self, _vip: IpAddr) -> bool {
        true
    }

    /// nfsdcld's database, if it has one.
    fn nfs4_records(&self) -> Option<PathBuf>;

    /// statd's directories of monitored clients.
    fn monitored(&self) -> Vec<PathBuf>;
}

/// Runs a program to its end, within `max`.
pub async fn run(words: &[OsString], max: Duration) -> Result<(), ServerError> {
    let shown: Vec<String> = words.iter().map(|word| word.shown().to_string()).collect();
    let command = shown.join(" ");
    let Some((program, arguments)) = words.split_first() else {
        return Err(ServerError::Other("there is no command to run".to_owned()));
    };
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    // Not `output`: a daemon that the program leaves behind keeps the pipes open. Standard
    // error is read from a file.
    let failed = |source| ServerError::Run {
        program: program.shown().to_string(),
        source,
    };
    let errors = tempfile::tempfile().map_err(failed)?;
    let status = Command::new(program)
        .args(arguments)
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors.try_clone().map_err(failed)?)
        .status();
    match timeout(max, status).await {
        Err(_) => Err(ServerError::Deadline {
            command,
            after: max,
        }),
        Ok(Err(source)) => Err(failed(source)),
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(ServerError::Failed {
            command,
            status: status.to_string(),
            said: written(errors),
        }),
    }
}

fn written(mut file: std::fs::File) -> String {
    use std::io::{Read, Seek};
    const MOST: u64 = 4096;
    let mut text = Vec::new();
    let read = file
        .rewind()
        .and_then(|()| file.take(MOST).read_to_end(&mut text));
    match read {
        Ok(_) => said(&text),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_program_that_fails_or_hangs_is_named() {
        let run = async |script: &str, max| {
            let words = ["sh", "-c", script].map(OsString::from);
            run(&words, max).await
        };
        let long = Duration::from_secs(60);
        run("true", long).await.unwrap();
        // What it leaves behind does not hold us up.
        run("sleep 60 & true", long).await.unwrap();
        let error = run("echo broken >&2; exit 3", long).await.unwrap_err();
        assert!(
            error.to_string().ends_with("exit status: 3: broken"),
            "{error}"
        );
        let error = run("sleep 60", Duration::from_millis(10))
            .await
            .unwrap_err();
        assert!(matches!(error, ServerError::Deadline { .. }), "{error}");
    }
}
