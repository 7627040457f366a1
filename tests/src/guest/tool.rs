//! Runs nlmfo on a node of a scenario.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::command::{Finished, finish};
use super::node::TestNode;
use super::wait::{Seen, until};

/// Exit codes of every command of `nlmfo`.
pub mod exit {
    /// Done and confirmed.
    pub const CONFIRMED: i32 = 0;
    pub const COULD_NOT_RUN: i32 = 1;
    pub const USAGE: i32 = 2;
    pub const NOT_CONFIRMED: i32 = 3;
    /// This kernel or node lacks something required.
    pub const UNSUPPORTED: i32 = 4;
    /// Confirmed, but clients were unreachable or reclaims are missing.
    pub const INCOMPLETE: i32 = 5;
}

/// How long this process has waited for nlmfo.
static MILLISECONDS: AtomicU64 = AtomicU64::new(0);

/// Seconds that this process has waited for commands of nlmfo.
pub fn seconds() -> f64 {
    MILLISECONDS.load(Ordering::Relaxed) as f64 / 1000.0
}

/// nlmfo on one node.
pub struct Tool<'a> {
    path: PathBuf,
    node: &'a TestNode,
}

impl<'a> Tool<'a> {
    pub fn new(path: impl Into<PathBuf>, node: &'a TestNode) -> Tool<'a> {
        Tool {
            path: path.into(),
            node,
        }
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.node.command(&self.path);
        command.args(arguments);
        command
    }

    /// Runs it to its end, whatever its exit status, and reports the time.
    pub fn run(&self, arguments: &[&str]) -> Result<Finished> {
        let started = Instant::now();
        let watch = super::stuck::watch(format!("nlmfo {}", arguments.join(" ")));
        let finished = finish(&mut self.command(arguments), "")?;
        drop(watch);
        let took = started.elapsed();
        MILLISECONDS.fetch_add(took.as_millis() as u64, Ordering::Relaxed);
        // Some have a thousand arguments.
        let words = arguments.get(..20).unwrap_or(arguments).join(" ");
        let took = took.as_secs_f64();
        eprintln!("{took:6.1} s: nlmfo {words}: exit code {}", finished.code());
        Ok(finished)
    }

    /// Runs it, and it must end with `code`.
    pub fn expect(&self, code: i32, arguments: &[&str]) -> Result<Finished> {
        let finished = self.run(arguments)?;
        ensure!(
            finished.code() == code,
            "nlmfo {}: exit code {} where {code} was expected\n{}{}",
            arguments.join(" "),
            finished.code(),
            finished.stdout,
            finished.stderr
        );
        Ok(finished)
    }

    /// Runs it with `--json`; it must end with `code` and print one document.
    pub fn json(&self, code: i32, arguments: &[&str]) -> Result<Value> {
        let arguments = [arguments, &["--json"]].concat();
        let finished = self.expect(code, &arguments)?;
        serde_json::from_str(&finished.stdout).with_context(|| {
            format!(
                "nlmfo {} printed no JSON: {}",
                arguments.join(" "),
                finished.stdout
            )
        })
    }

    /// Starts it without waiting for its end; its report is not kept.
    pub fn start(&self, arguments: &[&str]) -> Result<Running> {
        Self::spawn(self.command(arguments))
    }

    /// [`start`](Self::start) with a [`command`](Self::command) that was changed.
    pub fn spawn(mut command: Command) -> Result<Running> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        Ok(Running { child })
    }
}

/// A running `nlmfo`. Dropping it kills it.
pub struct Running {
    child: Child,
}

impl Running {
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).context("process id")?;
        kill(Pid::from_raw(pid), signal).with_context(|| format!("{signal} to nlmfo"))
    }

    /// Stops it until SIGCONT. Returns once no thread of it runs.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        let threads = format!("/proc/{}/task", self.id());
        until("nlmfo to stop", || {
            for thread in fs::read_dir(&threads)? {
                let stat = thread?.path().join("stat");
                let stat = fs::read_to_string(&stat).with_context(|| stat.display().to_string())?;
                // After the name, which is in parentheses.
                let state = stat
                    .rsplit(") ")
                    .next()
                    .and_then(|rest| rest.chars().next());
                if !matches!(state, Some('T' | 'Z' | 'X')) {
                    return Ok(Seen::No(format!("a thread is in state {state:?}")));
                }
            }
            Ok(Seen::Yes(()))
        })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by now.
    pub fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end and returns the exit code, as [`Finished::code`] does.
    pub fn code(&mut self) -> Result<i32> {
        use std::os::unix::process::ExitStatusExt;
        until("nlmfo to end", || {
            Ok(match self.child.try_wait()? {
                Some(status) => Seen::Yes(
                    status
                        .code()
                        .unwrap_or_else(|| 128 + status.signal().unwrap_or_default()),
                ),
                None => Seen::No("it still runs".into()),
            })
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
