//! A failover between two nodes, run on the one that gives up the VIPs.
//!
//! | step | where | if it fails |
//! |---|---|---|
//! | check: check the services | there | nothing has changed |
//! | arm: start grace for the VIPs | there | grace is ended; nothing else has changed |
//! | release, behind the fence | here | grace there is ended; if locks are released, their clients reclaim them here |
//! | hand over: the site's program moves the filesystem and the address | here | the same, unless a VIP has left or the program may still run: then grace there continues |
//! | take over: notify, follow the reclaims, audit | there | grace there continues until its deadline; run again |
//!
//! Each step can be repeated: after an interruption, the whole command is run again.

pub mod report;
pub mod rsh;
pub mod run;
pub mod started;

use std::ffi::OsString;
use std::io::{Read, Seek};
use std::net::IpAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::process::Command;
use tokio::time::timeout;

use self::report::Step;
use self::rsh::{Finished, Rsh};
use crate::causes::chain;
use crate::exit::Exit;
use crate::foreign::on_one_line;
use crate::times::milliseconds;

/// Maximum time for a short command there.
pub const REMOTE: Duration = Duration::from_mins(1);

/// Time for the remote node's start, probes and report, in addition to grace.
pub const MARGIN: Duration = Duration::from_mins(1);

/// A step of the failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    Check,
    Arm,
    Release,
    HandOver,
    TakeOver,
    /// End the window there, after a failure.
    EndThere,
    /// Let clients reclaim on this node, after a failure.
    TakeBack,
}

/// What to do after a failed step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing was changed.
    Nothing,
    /// Nothing was released: end the window there, and the fence here.
    EndThere,
    /// The VIPs are still here: let their clients reclaim what was released.
    TakeBack,
    /// A VIP has left, or may be leaving: it needs the window when it comes up there.
    LeaveThere,
}

/// The situation after a failed step.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Locks may have been released, by this run or an interrupted earlier one.
    pub released: bool,
    /// Every VIP is still an address of this node.
    pub all_here: bool,
    /// A program may still be moving them.
    pub moving: bool,
}

pub fn remedy(failed: Action, standing: Standing) -> Remedy {
    let Standing {
        released,
        all_here,
        moving,
    } = standing;
    match failed {
        _ if !all_here || moving => Remedy::LeaveThere,
        Action::Check if !released => Remedy::Nothing,
        Action::Check | Action::Arm | Action::Release | Action::HandOver if released => {
            Remedy::TakeBack
        }
        Action::Arm | Action::Release | Action::HandOver => Remedy::EndThere,
        // Both nodes may have them, or they were not moved: this is unknown.
        _ => Remedy::LeaveThere,
    }
}

/// The other node's part.
#[derive(Clone, Debug)]
pub struct There {
    pub rsh: Rsh,
    pub vips: Vec<IpAddr>,
    /// Maximum grace time once the VIPs are given up here.
    pub grace: Duration,
    /// Maximum time for the release and the hand-over before that.
    pub before: Duration,
    /// Maximum time for the VIPs to come up there.
    pub wait_address: Duration,
    /// Maximum time for its services to become ready.
    pub wait_services: Option<Duration>,
    /// Further arguments of the takeover.
    pub takeover: Vec<OsString>,
}

impl There {
    /// Checks whether the VIPs can be taken over there, before anything is changed.
    pub async fn check(&self) -> (Step, Exit) {
        let began = Instant::now();
        let mut arguments = self.command("check");
        arguments.push("--json".into());
        arguments.extend(self.waiting_for_services());
        let deadline = REMOTE + self.wait_services.unwrap_or_default();
        let (error, exit) = match self.rsh.nlmfo(&arguments, &[], deadline).await {
            Ok(finished) => match of_code(finished.code).unwrap_or(Exit::CouldNotRun) {
                Exit::Done => (None, Exit::Done),
                Exit::Unsupported => (Some(missing(&finished.stdout)), Exit::Unsupported),
                exit => (Some(self.said(&finished)), exit),
            },
            Err(error) => (Some(chain(&error)), Exit::CouldNotRun),
        };
        (self.step(Action::Check, began, error), exit)
    }

    fn waiting_for_services(&self) -> Vec<OsString> {
        let wait = self.wait_services.map(seconds);
        wait.map_or_else(Vec::new, |wait| vec!["--wait-services".into(), wait.into()])
    }

    /// Starts grace for the VIPs, before anything is given up here.
    pub async fn arm(&self) -> (Step, Exit) {
        let mut arguments = self.command("grace");
        arguments.push("--for".into());
        // The takeover sets the real end. Grace must not end before the takeover starts.
        arguments.push(seconds(self.before + self.grace + MARGIN).into());
        self.simple(Action::Arm, arguments).await
    }

    /// Ends it again.
    pub async fn end(&self) -> (Step, Exit) {
        let mut arguments = self.command("grace");
        arguments.push("--end".into());
        self.simple(Action::EndThere, arguments).await
    }

    /// Takes over the VIPs. The record is sent on standard input. Returns the other node's report
    /// and exit code.
    pub async fn take_over(&self, record: &[u8]) -> (Step, Option<serde_json::Value>, Exit) {
        let mut arguments = self.command("failover");
        arguments.extend(["--phase", "takeover", "--json", "--expect", "-"].map(OsString::from));
        arguments.extend(["--grace".into(), seconds(self.grace).into()]);
        arguments.extend(["--wait-address".into(), seconds(self.wait_address).into()]);
        arguments.extend(self.waiting_for_services());
        arguments.extend(self.takeover.iter().cloned());
        let began = Instant::now();
        let services = self.wait_services.unwrap_or_default();
        let deadline = self.grace + self.wait_address + services + MARGIN;
        let ran = self.rsh.nlmfo(&arguments, record, deadline).await;
        let (error, report, exit) = match ran {
            Err(error) => (Some(chain(&error)), None, Exit::NotConfirmed),
            Ok(finished) => match serde_json::from_str(&finished.stdout) {
                Ok(report) => {
                    let exit = of_code(finished.code).unwrap_or(Exit::NotConfirmed);
                    (None, Some(report), exit)
                }
                Err(_) => (Some(self.said(&finished)), None, Exit::NotConfirmed),
            },
        };
        (self.step(Action::TakeOver, began, error), report, exit)
    }

    fn command(&self, name: &str) -> Vec<OsString> {
        let mut arguments = vec![name.into()];
        for vip in &self.vips {
            arguments.extend(["--vip".into(), vip.to_string().into()]);
        }
        arguments
    }

    /// Runs a command of which only the exit code matters.
    async fn simple(&self, action: Action, arguments: Vec<OsString>) -> (Step, Exit) {
        let began = Instant::now();
        let (error, exit) = match self.rsh.nlmfo(&arguments, &[], REMOTE).await {
            // nlmfo did not run there, so nothing has started.
            Ok(finished) => match of_code(finished.code).unwrap_or(Exit::CouldNotRun) {
                Exit::Done => (None, Exit::Done),
                exit => (Some(self.said(&finished)), exit),
            },
            Err(error) => (Some(chain(&error)), Exit::CouldNotRun),
        };
        (self.step(action, began, error), exit)
    }

    fn said(&self, finished: &Finished) -> String {
        let code = match finished.code {
            Some(code) => format!("exit status {code}"),
            None => "a signal".to_owned(),
        };
        let said = match finished.stderr.as_str() {
            "" => "no error message",
            said => said,
        };
        format!("failed on {} with {code}: {said}", self.rsh.host)
    }

    fn step(&self, action: Action, began: Instant, error: Option<String>) -> Step {
        Step {
            action,
            node: self.rsh.host.clone(),
            error,
            took_ms: milliseconds(began.elapsed()),
        }
    }
}

/// Why the hand-over program failed.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// The program has ended.
    #[error("{0}")]
    Failed(String),
    /// It was killed with its child processes here; what it started on other nodes may still run.
    #[error("{program} did not finish within {} s", .after.as_secs())]
    Deadline { program: String, after: Duration },
}

/// Runs the hand-over program, which moves the filesystem and the address: `PROGRAM HOST VIP…`.
pub async fn hand_over(
    program: &Path,
    host: &str,
    vips: &[IpAddr],
    deadline: Duration,
) -> Result<(), HandOverError> {
    let mut said = tempfile::tempfile().map_err(|error| {
        HandOverError::Failed(format!("cannot create a temporary file: {error}"))
    })?;
    let errors = (said.try_clone()).map_err(|error| {
        HandOverError::Failed(format!("cannot create a temporary file: {error}"))
    })?;
    let mut child = Command::new(program)
        .arg(host)
        .args(vips.iter().map(IpAddr::to_string))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(|error| {
            HandOverError::Failed(format!("cannot run {}: {error}", program.display()))
        })?;
    // When the wait ends, its child processes end too.
    let group = Group(child.id());
    match timeout(deadline, child.wait()).await {
        Err(_) => Err(HandOverError::Deadline {
            program: program.display().to_string(),
            after: deadline,
        }),
        Ok(Err(error)) => Err(HandOverError::Failed(format!(
            "cannot wait for {}: {error}",
            program.display()
        ))),
        Ok(Ok(status)) => {
            // It may leave a process running on purpose.
            std::mem::forget(group);
            if status.success() {
                return Ok(());
            }
            let mut text = String::new();
            let read = said.rewind().and_then(|()| said.read_to_string(&mut text));
            let text = match read {
                Ok(_) => on_one_line(text.trim_end()).into_owned(),
                Err(error) => format!("its error messages cannot be read: {error}"),
            };
            let program = program.display();
            Err(HandOverError::Failed(format!(
                "{program} failed with {status}: {text}"
            )))
        }
    }
}

/// A process and its children, killed on drop.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = (self.0.and_then(|id| i32::try_from(id).ok())).and_then(Pid::from_raw);
        if let Some(leader) = leader {
            // It may have ended already.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// What `nlmfo check --json` found missing, as text.
fn missing(checked: &str) -> String {
    let checked: serde_json::Value = serde_json::from_str(checked).unwrap_or_default();
    let checks = checked["checks"].as_array().into_iter().flatten();
    let missing = checks.filter(|check| check["need"] == "required" && check["state"] == "missing");
    let words: Vec<String> = missing
        .map(|check| {
            let word = |key: &str| check[key].as_str().unwrap_or_default();
            format!("{}: {}; {}", word("name"), word("reason"), word("remedy"))
        })
        .collect();
    match words.is_empty() {
        true => "it cannot take over the VIPs and gave no reason".to_owned(),
        false => words.join(", "),
    }
}

/// A time in the form of the command line.
fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs_f64())
}

/// The exit code of nlmfo on the other node; none if it is that of a signal, a shell or ssh
/// (255).
fn of_code(code: Option<i32>) -> Option<Exit> {
    match code? {
        0 => Some(Exit::Done),
        1 | 2 => Some(Exit::CouldNotRun),
        3 => Some(Exit::NotConfirmed),
        4 => Some(Exit::Unsupported),
        5 => Some(Exit::Incomplete),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_released_comes_back_while_it_can() {
        use Remedy::*;
        let standing = |released, all_here, moving| Standing {
            released,
            all_here,
            moving,
        };
        for (failed, released, all_here, moving, expected) in [
            (Action::Check, false, true, false, Nothing),
            (Action::Check, true, true, false, TakeBack),
            (Action::Arm, false, true, false, EndThere),
            // An interrupted run has released them.
            (Action::Arm, true, true, false, TakeBack),
            (Action::Arm, true, false, false, LeaveThere),
            (Action::Release, false, true, false, EndThere),
            // They are there already, and clients may be reclaiming.
            (Action::Release, false, false, false, LeaveThere),
            (Action::Release, true, true, false, TakeBack),
            (Action::HandOver, true, true, false, TakeBack),
            (Action::HandOver, true, true, true, LeaveThere),
            (Action::HandOver, true, false, false, LeaveThere),
            (Action::TakeOver, true, false, false, LeaveThere),
            (Action::TakeOver, true, true, false, LeaveThere),
        ] {
            let found = remedy(failed, standing(released, all_here, moving));
            assert_eq!(found, expected, "{failed:?} {released} {all_here} {moving}");
        }
    }

    #[test]
    fn a_hand_over_that_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let (program, mark) = (folder.path().join("move"), folder.path().join("mark"));
        let script = format!(
            "#!/bin/sh\n(sleep 600; true) &\necho $! > {}\nwait\n",
            mark.display()
        );
        std::fs::write(&program, script).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&program, mode).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let run =
            |program: &Path, deadline| runtime.block_on(hand_over(program, "b", &[], deadline));
        let hung = run(&program, Duration::from_secs(2));
        assert!(
            matches!(hung, Err(HandOverError::Deadline { .. })),
            "{hung:?}"
        );
        let child = std::fs::read_to_string(&mark).unwrap();
        let status = format!("/proc/{}/stat", child.trim());
        let until = Instant::now() + Duration::from_secs(10);
        // Gone, or dead and not yet waited for by the one that inherits it.
        while std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < until, "its child lives on");
            std::thread::yield_now();
        }
        let failed = run(Path::new("/bin/false"), Duration::from_mins(1)).unwrap_err();
        assert!(failed.to_string().contains("exit status: 1"), "{failed}");
        run(Path::new("/bin/true"), Duration::from_mins(1)).unwrap();
    }

    #[test]
    fn what_is_missing_there_is_said_with_its_remedy() {
        let checked = r#"{"checks": [
            {"name": "btf", "need": "required", "state": "available"},
            {"name": "tcx", "need": "option", "state": "missing", "reason": "a", "remedy": "b"},
            {"name": "nfsv3", "need": "required", "state": "unknown", "because": "nfsd"},
            {"name": "statd", "need": "required", "state": "missing", "reason": "it hangs",
             "remedy": "restart it"}]}"#;
        assert_eq!(missing(checked), "statd: it hangs; restart it");
        assert!(missing("").contains("gave no reason"));
    }
}
