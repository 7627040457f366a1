//! `nlmfo failover --whole-server`: move the node's own NFS server with all its VIPs.

use std::fmt::{Display, Write};

use anyhow::anyhow;
use serde::Serialize;

use super::whole::{self, Kind};
use crate::exit::{Exit, Failure};
use crate::failover::options::{Options, Task};
use crate::failover::own;
use crate::failover::record::Record;
use crate::failover::watch::observe;
use crate::failover::whole::moved::{self, Move};
use crate::failover::whole::node::NodeServer;
use crate::failover::whole::report::RestartReport;
use crate::failover::whole::run::{self, Halves, Plan};
use crate::failover::whole::stop;
use crate::failover::whole::taking::{self, DEADLINE, Takeover};
use crate::notify::config::Config;
use crate::output;

/// Whether this node can take the server over.
#[derive(Serialize)]
struct Checked {
    schema: &'static str,
    ready: bool,
    hindrances: Vec<String>,
}

/// What was done on this node, or on both.
#[derive(Serialize)]
#[serde(untagged)]
enum Done {
    Half(Box<RestartReport>),
    Moved(Box<moved::Moved>),
}

impl Done {
    fn exit(&self) -> Exit {
        match self {
            Done::Half(report) => report.exit(),
            Done::Moved(moved) => moved.exit(),
        }
    }
}

impl Display for Done {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Done::Half(report) => report.fmt(f),
            Done::Moved(moved) => moved.fmt(f),
        }
    }
}

pub fn run(options: &Options, json: bool) -> Result<Exit, Failure> {
    let usage = |error| Err(Failure::new(Exit::Usage, error));
    if let Some(server) = own::server_of(&options.vips)? {
        return usage(anyhow!(
            "the VIPs belong to server {}, which is not the node's own: move them without --whole-server",
            server.name()
        ));
    }
    let halves = match &options.task {
        Task::Release | Task::Move(_) => Halves::Stop,
        Task::Takeover => Halves::Start,
        Task::Both => {
            return usage(anyhow!(
                "--whole-server requires --phase or --to; `nlmfo restart` stops and starts the server here"
            ));
        }
    };
    if options.dry_run {
        return check(json);
    }
    let config = Config::read(options.takeover.config.as_deref());
    let plan = Plan {
        halves,
        state: options.state.clone(),
        config: config.map_err(anyhow::Error::from)?,
        force: false,
        deadline: DEADLINE,
        moving: Some(options.vips.clone()),
    };
    let kind = Kind {
        name: "whole-server",
        schema: "nlmfo.last-whole-server/1",
        if_interrupted: "run the same command again",
    };
    let work = work(&plan, options);
    whole::run(&kind, &plan.state, json, Done::exit, work)
}

async fn work(plan: &Plan, options: &Options) -> Result<Done, Failure> {
    let deadline = options.release.deadline;
    let server = NodeServer::find(&plan.state, None, None, deadline).await;
    let server = server.map_err(anyhow::Error::from)?;
    let half = |report| Done::Half(Box::new(report));
    match &options.task {
        Task::Move(node) => {
            let wait = options.takeover.wait_address;
            let to = Move {
                wait_address: wait.unwrap_or(node.hand_over_deadline),
                node: node.clone(),
                vips: options.vips.clone(),
                config: options.takeover.config.clone(),
            };
            let moved = moved::run(plan, &server, &to).await?;
            Ok(Done::Moved(Box::new(moved)))
        }
        Task::Takeover => {
            let takeover = Takeover {
                vips: options.vips.clone(),
                given: taking::given(options.takeover.expect.as_deref())?,
                wait_address: options.takeover.wait_address.unwrap_or_default(),
            };
            Ok(half(taking::run(plan, &server, takeover).await?))
        }
        _ => {
            // Before anything is changed.
            let record = options.release.record.as_deref();
            let copy = record
                .map(Record::place)
                .transpose()
                .map_err(anyhow::Error::from)?;
            let report = run::run(plan, &server, observe).await?;
            if let Some(place) = copy {
                let copied = Record::read(&stop::record_path(&plan.state))
                    .and_then(|mut record| record.put(&place));
                copied.map_err(|error| Failure::new(Exit::NotConfirmed, error))?;
            }
            Ok(half(report))
        }
    }
}

/// Reports whether this node can take the server over, and changes nothing.
fn check(json: bool) -> Result<Exit, Failure> {
    let hindrances = taking::hindrances();
    let checked = Checked {
        schema: "nlmfo.whole-server.check/1",
        ready: hindrances.is_empty(),
        hindrances,
    };
    if json {
        output::list_json(&checked)?;
    } else {
        output::list(|out| match checked.ready {
            true => writeln!(out, "✓ this node can take the server over"),
            false => (checked.hindrances.iter()).try_for_each(|one| writeln!(out, "✗ {one}")),
        })?;
    }
    Ok(match checked.ready {
        true => Exit::Done,
        false => Exit::Unsupported,
    })
}
