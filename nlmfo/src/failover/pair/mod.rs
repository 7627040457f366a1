//! A failover of two nodes, driven from the one that gives VIPs up.
//!
//! | step | where | if it fails |
//! |---|---|---|
//! | check: look at the services | there | nothing has changed |
//! | arm: open the VIPs' grace | there | it is ended again; nothing else has changed |
//! | release, behind the fence | here | grace there is ended; if locks are released, their clients get them back here |
//! | hand over: the site's program moves the filesystem and the address | here | the same, unless a VIP has left, or nobody knows what the program still does: then grace stays open there |
//! | take over: notify, follow the reclaims, audit | there | grace there lasts for its time; run again |
//!
//! Each step may be done twice: after an interruption the whole is run again.

pub mod report;
pub mod rsh;

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
use super::milliseconds;
use crate::causes::chain;
use crate::exit::Exit;
use crate::foreign::on_one_line;

/// For a command there that changes a map and returns.
pub const REMOTE: Duration = Duration::from_secs(60);

/// For the remote node's start, probes and report, besides its grace.
pub const MARGIN: Duration = Duration::from_secs(60);

/// A step of the failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    Check,
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
    /// Nothing was done.
    Nothing,
    /// Nothing was released: the window there goes, and the fence here.
    EndThere,
    /// The VIPs are still here: their clients get back what was released.
    TakeBack,
    /// A VIP has left, or may be leaving: whoever brings it up there needs the window.
    LeaveThere,
}

/// How things stand when a step has failed.
#[derive(Clone, Copy, Debug)]
pub struct Standing {
    /// Locks may have been released, by this run or an interrupted one before.
    pub released: bool,
    /// Every VIP is still an address of this node.
    pub all_here: bool,
    /// Somebody may still be moving them.
    pub moving: bool,
}

pub fn remedy(failed: Stage, standing: Standing) -> Remedy {
    let Standing {
        released,
        all_here,
        moving,
    } = standing;
    match failed {
        _ if !all_here || moving => Remedy::LeaveThere,
        Stage::Check if !released => Remedy::Nothing,
        Stage::Check | Stage::Arm | Stage::Release | Stage::HandOver if released => {
            Remedy::TakeBack
        }
        Stage::Arm | Stage::Release | Stage::HandOver => Remedy::EndThere,
        // Both nodes have them, or nobody moved them: not ours to guess.
        _ => Remedy::LeaveThere,
    }
}

/// The other node's part.
#[derive(Clone, Debug)]
pub struct There {
    pub rsh: Rsh,
    pub vips: Vec<IpAddr>,
    /// How long grace may last once the VIPs are given up here.
    pub grace: Duration,
    /// How long the release and the hand-over may take before that.
    pub before: Duration,
    /// How long the VIPs may take to come up there.
    pub wait_address: Duration,
    /// How long its services may take until they can carry the takeover.
    pub wait_services: Option<Duration>,
    /// Further arguments of the takeover.
    pub takeover: Vec<OsString>,
}

impl There {
    /// Looks whether the VIPs can be taken over there, before anything is changed.
    pub async fn check(&self) -> (Step, Exit) {
        let began = Instant::now();
        let mut arguments = self.command("check");
        arguments.push("--json".into());
        arguments.extend(self.waiting_for_services());
        let deadline = REMOTE + self.wait_services.unwrap_or_default();
        let (error, exit) = match self.rsh.nlmfo(&arguments, &[], deadline).await {
            Ok(finished) => match of_code(finished.code).unwrap_or(Exit::CouldNotRun) {
                Exit::Done => (None, Exit::Done),
                Exit::Lacking => (Some(missing(&finished.stdout)), Exit::Lacking),
                exit => (Some(self.said(&finished)), exit),
            },
            Err(error) => (Some(chain(&error)), Exit::CouldNotRun),
        };
        (self.step(Stage::Check, began, error), exit)
    }

    fn waiting_for_services(&self) -> Vec<OsString> {
        let wait = self.wait_services.map(seconds);
        wait.map_or_else(Vec::new, |wait| vec!["--wait-services".into(), wait.into()])
    }

    /// Opens the VIPs' grace, before anything is given up here.
    pub async fn arm(&self) -> (Step, Exit) {
        let mut arguments = self.command("grace");
        arguments.push("--for".into());
        // The takeover sets the real end; until it has begun, grace must not be over.
        arguments.push(seconds(self.before + self.grace + MARGIN).into());
        self.simple(Stage::Arm, arguments).await
    }

    /// Ends it again.
    pub async fn end(&self) -> (Step, Exit) {
        let mut arguments = self.command("grace");
        arguments.push("--end".into());
        self.simple(Stage::EndThere, arguments).await
    }

    /// Takes the VIPs over; the record goes over the wire. What it reports there, and the
    /// exit code that it ended with.
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
        (self.step(Stage::TakeOver, began, error), report, exit)
    }

    fn command(&self, name: &str) -> Vec<OsString> {
        let mut arguments = vec![name.into()];
        for vip in &self.vips {
            arguments.extend(["--vip".into(), vip.to_string().into()]);
        }
        arguments
    }

    /// A command whose exit code is all that is wanted of it.
    async fn simple(&self, stage: Stage, arguments: Vec<OsString>) -> (Step, Exit) {
        let began = Instant::now();
        let (error, exit) = match self.rsh.nlmfo(&arguments, &[], REMOTE).await {
            // Nothing has begun where it is not nlmfo that answers.
            Ok(finished) => match of_code(finished.code).unwrap_or(Exit::CouldNotRun) {
                Exit::Done => (None, Exit::Done),
                exit => (Some(self.said(&finished)), exit),
            },
            Err(error) => (Some(chain(&error)), Exit::CouldNotRun),
        };
        (self.step(stage, began, error), exit)
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

/// Why the site's program has not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandOverError {
    /// Nothing of it is left running.
    #[error("{0}")]
    Failed(String),
    /// It was killed with what it had started here; what it had started elsewhere may go on.
    #[error("{program} did not end within {} s", .after.as_secs())]
    Deadline { program: String, after: Duration },
}

/// Runs the site's program that moves the filesystem and the address: `PROGRAM HOST VIP…`.
pub async fn hand_over(
    program: &Path,
    host: &str,
    vips: &[IpAddr],
    deadline: Duration,
) -> Result<(), HandOverError> {
    let mut said = tempfile::tempfile()
        .map_err(|error| HandOverError::Failed(format!("a file for its errors: {error}")))?;
    let errors = (said.try_clone())
        .map_err(|error| HandOverError::Failed(format!("a file for its errors: {error}")))?;
    let mut child = Command::new(program)
        .arg(host)
        .args(vips.iter().map(IpAddr::to_string))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .process_group(0)
        .spawn()
        .map_err(|error| {
            HandOverError::Failed(format!("{} cannot be run: {error}", program.display()))
        })?;
    // Whatever ends our waiting ends what it has started, too.
    let group = Group(child.id());
    match timeout(deadline, child.wait()).await {
        Err(_) => Err(HandOverError::Deadline {
            program: program.display().to_string(),
            after: deadline,
        }),
        Ok(Err(error)) => Err(HandOverError::Failed(format!(
            "waiting for {}: {error}",
            program.display()
        ))),
        Ok(Ok(status)) => {
            // It may leave something running on purpose.
            std::mem::forget(group);
            if status.success() {
                return Ok(());
            }
            let mut text = String::new();
            let read = said.rewind().and_then(|()| said.read_to_string(&mut text));
            let text = match read {
                Ok(_) => on_one_line(text.trim_end()).into_owned(),
                Err(error) => format!("its errors cannot be read: {error}"),
            };
            let program = program.display();
            Err(HandOverError::Failed(format!(
                "{program} ended with {status}: {text}"
            )))
        }
    }
}

/// A process and those that it has started, killed when this is dropped.
struct Group(Option<u32>);

impl Drop for Group {
    fn drop(&mut self) {
        let leader = (self.0.and_then(|id| i32::try_from(id).ok())).and_then(Pid::from_raw);
        if let Some(leader) = leader {
            // Gone already, or it goes now.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// What `nlmfo check --json` found missing, in words.
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
        true => "it cannot take the VIPs over, and did not say why".to_owned(),
        false => words.join(", "),
    }
}

/// As the command line takes times.
fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs_f64())
}

/// The other node's exit code; none if it is not nlmfo's, but a signal's, a shell's or that
/// of the program that runs commands there (ssh has 255).
fn of_code(code: Option<i32>) -> Option<Exit> {
    match code? {
        0 => Some(Exit::Done),
        1 | 2 => Some(Exit::CouldNotRun),
        3 => Some(Exit::NotConfirmed),
        4 => Some(Exit::Lacking),
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
            (Stage::Check, false, true, false, Nothing),
            (Stage::Check, true, true, false, TakeBack),
            (Stage::Arm, false, true, false, EndThere),
            // An interrupted run has released them.
            (Stage::Arm, true, true, false, TakeBack),
            (Stage::Arm, true, false, false, LeaveThere),
            (Stage::Release, false, true, false, EndThere),
            // They are there already, and clients may be reclaiming.
            (Stage::Release, false, false, false, LeaveThere),
            (Stage::Release, true, true, false, TakeBack),
            (Stage::HandOver, true, true, false, TakeBack),
            (Stage::HandOver, true, true, true, LeaveThere),
            (Stage::HandOver, true, false, false, LeaveThere),
            (Stage::TakeOver, true, false, false, LeaveThere),
            (Stage::TakeOver, true, true, false, LeaveThere),
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
        // Gone, or dead and not yet waited for by whoever inherits it.
        while std::fs::read_to_string(&status).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < until, "its child lives on");
            std::thread::yield_now();
        }
        let failed = run(Path::new("/bin/false"), Duration::from_secs(60)).unwrap_err();
        assert!(failed.to_string().contains("exit status: 1"), "{failed}");
        run(Path::new("/bin/true"), Duration::from_secs(60)).unwrap();
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
        assert!(missing("").contains("did not say why"));
    }
}
