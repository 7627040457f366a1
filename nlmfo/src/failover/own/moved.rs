//! The move of a server of its own to another node, run on the one that gives it up.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::anyhow;
use serde::Serialize;
use serde_json::Value;

use super::{Done, Stopped, no_runtime, start, stop};
use crate::exit::{Exit, Failure};
use crate::failover::options::OtherNode;
use crate::failover::pair::hand_over;
use crate::failover::pair::rsh::{Finished, Rsh};
use crate::failover::pair::started::{judge, missing, said};
use crate::kernel::netns;
use crate::runtime;
use crate::server::Server;
use crate::times::milliseconds;

/// Maximum time for a command on the other node, besides its grace.
const REMOTE: Duration = Duration::from_mins(2);

/// What a move did.
#[derive(Debug, Serialize)]
pub struct Moved {
    #[serde(skip)]
    name: String,
    from: String,
    to: String,
    pub stop: Stopped,
    /// What the other node's `nlmfo server start` reported.
    start: Value,
    /// Why the other node did not start it.
    error: Option<String>,
    /// The server serves on this node again.
    back: bool,
    /// From the moment that nothing came from clients any more until the start was over: no client
    /// got a new lock meanwhile. A Linux NFSv3 client that asked in grace asks again only 5 s later.
    stood_still_ms: f64,
    #[serde(skip)]
    exit: Exit,
}

impl Moved {
    pub const SCHEMA: &str = "nlmfo.server.move/1";
}

/// Whether the other node says that nothing of the server is there. A server that may have been started
/// there, perhaps by an earlier command that still runs, must not be started here too.
fn is_absent(node: &OtherNode, name: &str) -> bool {
    let asked = ask(&node.rsh, &["server", "status", name, "--json"], REMOTE);
    asked.is_ok_and(|finished| says_stopped(&finished.stdout))
}

/// Whether this status says that the server does not run.
fn says_stopped(status: &str) -> bool {
    let status: Value = serde_json::from_str(status).unwrap_or_default();
    status["state"] == "stopped"
}

/// Stops the server here and starts it on the other node; if that fails, here again.
pub(super) fn run(
    server: &Server,
    node: &OtherNode,
    show: &mut dyn FnMut(Done<'_>, Option<Exit>),
) -> Result<Exit, Failure> {
    let (name, host) = (server.name(), &node.rsh.host);
    let limit = server.description.grace + REMOTE;
    let checked = ask(&node.rsh, &["server", "check", name], limit)?;
    // A hand-over program may provide what is missing.
    if checked.code != Some(0) && node.hand_over.is_none() {
        let error = anyhow!(
            "{host} cannot start server {name}, nothing was changed: {}",
            said(&checked)
        );
        return Err(Failure::new(Exit::Unsupported, error));
    }
    let stopped = stop(server)?;
    if stopped.exit() != Exit::Done {
        let error =
            anyhow!("the stop of server {name} is not confirmed: it was not started on {host}");
        show(Done::Stopped(&stopped), Some(Exit::NotConfirmed));
        return Err(Failure::new(Exit::NotConfirmed, error));
    }
    let handed = handed_over(server, node);
    let command = ["server", "start", name, "--json"];
    let started = handed.and_then(|()| ask(&node.rsh, &command, limit));
    let (there, report, error) = match started {
        Ok(finished) => {
            let report = serde_json::from_str(&finished.stdout).unwrap_or(Value::Null);
            let there = judge(finished.code, !report.is_null());
            (there, report, (!there.serves).then(|| said(&finished)))
        }
        Err(failure) => {
            let error = format!("{:#}", failure.error);
            (judge(None, false), Value::Null, Some(error))
        }
    };
    let stood_still_ms = milliseconds(stopped.fenced.elapsed());
    let moved = Moved {
        name: name.to_owned(),
        from: netns::node(),
        to: host.clone(),
        stop: stopped,
        start: report,
        error,
        back: !there.serves && is_absent(node, name) && start(server, false).is_ok(),
        stood_still_ms,
        exit: there.exit,
    };
    show(Done::Moved(&moved), Some(moved.exit));
    Ok(moved.exit)
}

fn handed_over(server: &Server, node: &OtherNode) -> Result<(), Failure> {
    let Some(program) = &node.hand_over else {
        return Ok(());
    };
    let vips = server.description.vips.iter();
    let vips: Vec<IpAddr> = vips.map(|vip| vip.address).collect();
    let moved = hand_over(program, &node.rsh.host, &vips, node.hand_over_deadline);
    let moved = runtime::run(moved).map_err(no_runtime)?;
    moved.map_err(|error| Failure::new(Exit::NotConfirmed, error))
}

fn ask(rsh: &Rsh, words: &[&str], limit: Duration) -> Result<Finished, Failure> {
    let words: Vec<OsString> = words.iter().map(OsString::from).collect();
    let done = runtime::run(rsh.nlmfo(&words, &[], limit)).map_err(no_runtime)?;
    Ok(done.map_err(anyhow::Error::from)?)
}

/// Where the server is after the move.
impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Moved { name, to, .. } = self;
        match (&self.error, self.back) {
            (None, _) => {
                writeln!(
                    f,
                    "{} server {name} serves on {to}; no client got a new lock for {:.1} s",
                    if self.exit == Exit::Done {
                        "✓"
                    } else {
                        "✗"
                    },
                    self.stood_still_ms / 1000.0
                )?;
                missing(&self.start["reclaim"]).fmt(f)
            }
            (Some(error), true) => {
                writeln!(f, "✗ {to}: {error}; server {name} serves here again")
            }
            (Some(error), false) => writeln!(
                f,
                "✗ {to}: {error}; server {name} may run there: run the command again, or make sure \
                 that it does not, and run `nlmfo server start {name}` here"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_may_run_there_is_not_started_here() {
        assert!(says_stopped(r#"{"name":"mail","state":"stopped"}"#));
        for status in [
            r#"{"state":"serving"}"#,
            r#"{"state":"degraded"}"#,
            "",
            "[]",
        ] {
            assert!(!says_stopped(status), "{status}");
        }
    }
}
