//! A failover of two nodes, driven from the one that gives VIPs up.
//!
//! | step | where | if it fails |
//! |---|---|---|
//! | arm: open the VIPs' grace | there | nothing has changed |
//! | release, behind the fence | here | grace there is ended; if the VIPs are still here, their clients get their locks back here |
//! | hand over: the site's program moves the filesystem and the address | here | the same, unless a VIP has left: then grace stays open there |
//! | take over: notify, follow the reclaims, audit | there | grace there lasts for its time; run again |
//!
//! Each step may be done twice: after an interruption the whole is run again.

pub mod report;
pub mod rsh;

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::process::Command;
use tokio::time::timeout;

use self::report::Step;
use self::rsh::{Finished, Rsh};
use super::milliseconds;
use crate::exit::Exit;

/// For a command there that changes a map and returns.
const REMOTE: Duration = Duration::from_secs(60);

/// For the remote node's start, probes and report, besides its grace.
const MARGIN: Duration = Duration::from_secs(60);

/// A step of the failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Arm,
    Release,
    HandOver,
    TakeOver,
    /// The window there, after a failure.
    EndThere,
    /// Locks come back to this node, after a failure.
    TakeBack,
}

/// What is done about a step that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing was changed.
    Nothing,
    /// Nothing was released: only the window there goes.
    EndThere,
    /// The VIPs are still here: their clients get back what was released.
    TakeBack,
    /// A VIP has left: whoever brings it up there needs the window.
    LeaveThere,
}

/// `released`: whether locks may have been released. `all_here`: whether every VIP is
/// still an address of this node.
pub fn remedy(failed: Stage, released: bool, all_here: bool) -> Remedy {
    match failed {
        Stage::Arm => Remedy::Nothing,
        Stage::Release | Stage::HandOver if !released => Remedy::EndThere,
        Stage::Release | Stage::HandOver if all_here => Remedy::TakeBack,
        _ => Remedy::LeaveThere,
    }
}

/// The other node's part.
#[derive(Clone, Debug)]
pub struct There {
    pub rsh: Rsh,
    pub vips: Vec<IpAddr>,
    pub grace: Duration,
    /// How long the VIPs may take to come up there.
    pub wait_address: Duration,
    /// Further arguments of the takeover.
    pub takeover: Vec<String>,
}

impl There {
    /// Opens the VIPs' grace, before anything is given up here.
    pub async fn arm(&self) -> (Step, bool) {
        let mut arguments = self.command("grace");
        arguments.push("--for".to_owned());
        arguments.push(seconds(self.grace));
        self.simple(Stage::Arm, arguments).await
    }

    /// Ends it again.
    pub async fn end(&self) -> (Step, bool) {
        let mut arguments = self.command("grace");
        arguments.push("--end".to_owned());
        self.simple(Stage::EndThere, arguments).await
    }

    /// Takes the VIPs over; the record goes over the wire. What it reports there, and the
    /// exit code that it ended with.
    pub async fn take_over(&self, record: &[u8]) -> (Step, Option<serde_json::Value>, Exit) {
        let mut arguments = self.command("failover");
        arguments.extend(["--phase", "takeover", "--json", "--expect", "-"].map(str::to_owned));
        arguments.extend(["--grace".to_owned(), seconds(self.grace)]);
        arguments.extend(["--wait-address".to_owned(), seconds(self.wait_address)]);
        arguments.extend(self.takeover.iter().cloned());
        let began = Instant::now();
        let deadline = self.grace + self.wait_address + MARGIN;
        let ran = self.rsh.nlmfo(&arguments, record, deadline).await;
        let (error, report, exit) = match ran {
            Err(error) => (Some(error.to_string()), None, Exit::NotConfirmed),
            Ok(finished) => match serde_json::from_str(&finished.stdout) {
                Ok(report) => (None, Some(report), of_code(finished.code)),
                Err(_) => (Some(self.said(&finished)), None, Exit::NotConfirmed),
            },
        };
        (self.step(Stage::TakeOver, began, error), report, exit)
    }

    fn command(&self, name: &str) -> Vec<String> {
        let mut arguments = vec![name.to_owned()];
        for vip in &self.vips {
            arguments.extend(["--vip".to_owned(), vip.to_string()]);
        }
        arguments
    }

    /// A command whose exit code is all that is wanted of it.
    async fn simple(&self, stage: Stage, arguments: Vec<String>) -> (Step, bool) {
        let began = Instant::now();
        let error = match self.rsh.nlmfo(&arguments, &[], REMOTE).await {
            Ok(finished) if finished.code == Some(0) => None,
            Ok(finished) => Some(self.said(&finished)),
            Err(error) => Some(error.to_string()),
        };
        let good = error.is_none();
        (self.step(stage, began, error), good)
    }

    fn said(&self, finished: &Finished) -> String {
        let code = match finished.code {
            Some(code) => format!("exit status {code}"),
            None => "a signal".to_owned(),
        };
        let said = match finished.stderr.as_str() {
            "" => "it said nothing",
            said => said,
        };
        format!("on {} it ended with {code}: {said}", self.rsh.host)
    }

    fn step(&self, stage: Stage, began: Instant, error: Option<String>) -> Step {
        Step {
            stage,
            node: self.rsh.host.clone(),
            error,
            took_ms: milliseconds(began.elapsed()),
        }
    }
}

/// Runs the site's program that moves the filesystem and the address: `PROGRAM HOST VIP…`.
pub async fn hand_over(
    program: &PathBuf,
    host: &str,
    vips: &[IpAddr],
    deadline: Duration,
) -> Result<(), String> {
    let run = Command::new(program)
        .arg(host)
        .args(vips.iter().map(IpAddr::to_string))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let program = program.display();
    match timeout(deadline, run).await {
        Err(_) => Err(format!(
            "{program} did not end within {} s",
            deadline.as_secs()
        )),
        Ok(Err(error)) => Err(format!("{program} cannot be run: {error}")),
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => Err(format!(
            "{program} ended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim_end()
        )),
    }
}

/// As the command line takes times.
fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs_f64())
}

/// The other node's exit code, if it is one of ours.
fn of_code(code: Option<i32>) -> Exit {
    match code {
        Some(0) => Exit::Done,
        Some(4) => Exit::Lacking,
        Some(5) => Exit::Incomplete,
        _ => Exit::NotConfirmed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_released_comes_back_while_it_can() {
        for (failed, released, all_here, expected) in [
            (Stage::Arm, false, true, Remedy::Nothing),
            (Stage::Release, false, true, Remedy::EndThere),
            (Stage::Release, true, true, Remedy::TakeBack),
            (Stage::Release, true, false, Remedy::LeaveThere),
            (Stage::HandOver, true, true, Remedy::TakeBack),
            (Stage::HandOver, true, false, Remedy::LeaveThere),
            (Stage::TakeOver, true, false, Remedy::LeaveThere),
            // Both nodes have it, or nobody moved it: not ours to guess.
            (Stage::TakeOver, true, true, Remedy::LeaveThere),
        ] {
            let found = remedy(failed, released, all_here);
            assert_eq!(found, expected, "{failed:?} {released} {all_here}");
        }
    }
}
