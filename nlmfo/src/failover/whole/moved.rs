//! `nlmfo failover --whole-server --to HOST`, run on the node that gives the server up.

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use serde::Serialize;
use serde_json::Value;

use super::node::NodeServer;
use super::report::RestartReport;
use super::run::{self, Halves, Plan};
use super::taking::DEADLINE;
use super::{start, stop};
use crate::exit::{Exit, Failure};
use crate::failover::options::OtherNode;
use crate::failover::pair::hand_over;
use crate::failover::pair::rsh::{Finished, Rsh};
use crate::failover::pair::started::{judge, missing, said};
use crate::failover::watch::observe;
use crate::files::{self, LIMIT};
use crate::kernel::netns;
use crate::output;
use crate::times::milliseconds;

/// Maximum time for a command on the other node, besides what it waits for.
const REMOTE: Duration = Duration::from_mins(2);

/// `nlmfo failover --whole-server --to HOST --json`: one object.
#[derive(Debug, Serialize)]
pub struct Moved {
    schema: &'static str,
    from: String,
    to: String,
    /// The stop here.
    release: RestartReport,
    /// The other node's report of the start, like that of `nlmfo restart`; null if there is none.
    takeover: Value,
    /// Why the other node did not start the server.
    error: Option<String>,
    /// The start here, after that.
    back: Option<RestartReport>,
    /// From the end of the stop until the other node had followed the reclaims: no client got a new
    /// lock meanwhile.
    stood_still_ms: f64,
    took_ms: f64,
    #[serde(skip)]
    exit: Exit,
}

/// How the server moves.
#[derive(Clone, Debug)]
pub struct Move {
    pub node: OtherNode,
    /// The VIPs that move, if they are named.
    pub vips: Vec<IpAddr>,
    /// Maximum time to wait there until the VIPs are up.
    pub wait_address: Duration,
    /// The names that clients mount by, there.
    pub config: Option<PathBuf>,
}

/// Stops the server here and starts it on the other node; if that fails before anything moved, here
/// again.
///
/// # Errors
/// If nothing was changed, or the stop failed.
pub async fn run(plan: &Plan, server: &NodeServer, to: &Move) -> Result<Moved, Failure> {
    let began = Instant::now();
    let host = &to.node.rsh.host;
    let checked = ask(&to.node.rsh, &there(plan, to, &["--dry-run"]), &[], REMOTE).await?;
    if checked.code != Some(0) {
        let error = anyhow!(
            "{host} cannot take the server over, nothing was changed: {}",
            said(&checked)
        );
        return Err(Failure::new(Exit::Unsupported, error));
    }
    let release = run::run(&half(plan, Halves::Stop), server, observe).await?;
    let stopped = Instant::now();
    let mut moved = Moved {
        schema: "nlmfo.whole-server.move/1",
        from: netns::node(),
        to: host.clone(),
        takeover: Value::Null,
        error: None,
        back: None,
        stood_still_ms: 0.0,
        took_ms: 0.0,
        exit: Exit::NotConfirmed,
        release,
    };
    if moved.release.exit() == Exit::Done {
        hand_over_and_start(plan, server, to, &mut moved).await;
    } else {
        moved.error = Some("the stop here is not confirmed: it was not started there".to_owned());
    }
    moved.stood_still_ms = milliseconds(stopped.elapsed());
    moved.took_ms = milliseconds(began.elapsed());
    Ok(moved)
}

/// The same for one half, on this node.
fn half(plan: &Plan, halves: Halves) -> Plan {
    Plan {
        halves,
        ..plan.clone()
    }
}

async fn hand_over_and_start(plan: &Plan, server: &NodeServer, to: &Move, moved: &mut Moved) {
    let path = stop::record_path(&plan.state);
    let record = match files::read(&path, LIMIT) {
        Ok(record) => record,
        Err(error) => {
            moved.error = Some(format!("{:#}", anyhow!(error)));
            return;
        }
    };
    if let Some(program) = &to.node.hand_over {
        let deadline = to.node.hand_over_deadline;
        let vips = match (to.vips.is_empty(), stop::stored(&plan.state)) {
            (true, Ok(Some(record))) => record.vips,
            _ => to.vips.clone(),
        };
        if let Err(error) = hand_over(program, &moved.to, &vips, deadline).await {
            moved.error = Some(format!("the hand-over failed: {error}"));
            return;
        }
    }
    let arguments = there(plan, to, &["--expect", "-"]);
    let limit = DEADLINE + to.wait_address + REMOTE;
    let there = match ask(&to.node.rsh, &arguments, &record, limit).await {
        Ok(finished) => {
            moved.takeover = serde_json::from_str(&finished.stdout).unwrap_or(Value::Null);
            let there = judge(finished.code, !moved.takeover.is_null());
            moved.error = (!there.serves).then(|| said(&finished));
            there
        }
        Err(failure) => {
            moved.error = Some(format!("{:#}", failure.error));
            judge(None, false)
        }
    };
    moved.exit = there.exit;
    if there.serves {
        start::forget(&plan.state);
    }
    // A hand-over may have moved the filesystem.
    let stays = !there.serves && to.node.hand_over.is_none() && is_all_here(plan);
    if stays && is_absent(plan, to).await {
        match run::run(&half(plan, Halves::Start), server, observe).await {
            Ok(report) => moved.back = Some(report),
            Err(failure) => output::note(format_args!("{:#}", failure.error)),
        }
    }
}

/// Whether the other node says that no NFS server runs there. The command there may have failed because
/// of another one that still runs.
async fn is_absent(plan: &Plan, to: &Move) -> bool {
    let checked = ask(&to.node.rsh, &there(plan, to, &["--dry-run"]), &[], REMOTE).await;
    checked.is_ok_and(|finished| finished.code == Some(0))
}

/// Whether all recorded VIPs are still addresses of this node.
fn is_all_here(plan: &Plan) -> bool {
    let is_here = |vip: &IpAddr| netns::has_address(*vip).unwrap_or(false);
    let record = stop::stored(&plan.state);
    record.is_ok_and(|record| record.is_some_and(|record| record.vips.iter().all(is_here)))
}

/// The arguments of nlmfo there.
fn there(plan: &Plan, to: &Move, further: &[&str]) -> Vec<OsString> {
    let words = [
        "failover",
        "--whole-server",
        "--phase",
        "takeover",
        "--json",
    ];
    let mut words: Vec<OsString> = words.iter().chain(further).map(OsString::from).collect();
    for vip in &to.vips {
        words.extend(["--vip".into(), vip.to_string().into()]);
    }
    words.extend(["--state-dir".into(), plan.state.path().into()]);
    let wait = format!("{}s", to.wait_address.as_secs_f64());
    words.extend(["--wait-address".into(), wait.into()]);
    if let Some(config) = &to.config {
        words.extend(["--config".into(), config.into()]);
    }
    words
}

async fn ask(
    rsh: &Rsh,
    words: &[OsString],
    input: &[u8],
    limit: Duration,
) -> Result<Finished, Failure> {
    let done = rsh.nlmfo(words, input, limit).await;
    Ok(done.map_err(anyhow::Error::from)?)
}

impl Moved {
    pub fn exit(&self) -> Exit {
        self.exit
    }
}

impl fmt::Display for Moved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let to = &self.to;
        write!(f, "{}", self.release)?;
        let Some(error) = &self.error else {
            let mark = if self.exit == Exit::Done {
                "✓"
            } else {
                "✗"
            };
            let start = &self.takeover["start"];
            writeln!(
                f,
                "{mark} the NFS server runs on {to}: {} locks and opens expected there; no client got a new \
                 lock for {:.1} s",
                start["expected"],
                self.stood_still_ms / 1000.0
            )?;
            return missing(start).fmt(f);
        };
        match &self.back {
            Some(back) => write!(
                f,
                "✗ {to}: {error}; the NFS server runs here again:\n{back}"
            ),
            None => writeln!(
                f,
                "✗ {to}: {error}; the NFS server is stopped here, and the record is stored: make sure that it \
                 does not run on {to}, then start it with `nlmfo restart --start-only` here, or with `nlmfo \
                 failover --whole-server --phase takeover` on {to}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::config::Config;
    use crate::notify::state_dir::StateDir;

    #[test]
    fn the_other_node_is_told_what_its_takeover_needs() {
        let plan = Plan {
            halves: Halves::Stop,
            state: StateDir::new("/state"),
            config: Config::default(),
            force: false,
            deadline: DEADLINE,
            moving: Some(Vec::new()),
        };
        let to = Move {
            node: OtherNode {
                rsh: Rsh::new("ssh".as_ref(), "b", "nlmfo".as_ref()).unwrap(),
                hand_over: None,
                hand_over_deadline: Duration::from_mins(1),
            },
            vips: vec!["10.77.0.1".parse().unwrap()],
            wait_address: Duration::from_mins(1),
            config: Some("/names".into()),
        };
        let words = there(&plan, &to, &["--expect", "-"]);
        let words: Vec<&str> = words.iter().map(|word| word.to_str().unwrap()).collect();
        let expected = "failover --whole-server --phase takeover --json --expect - --vip 10.77.0.1 --state-dir \
                        /state --wait-address 60s --config /names";
        assert_eq!(words.join(" "), expected);
    }
}
