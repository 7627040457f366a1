//! `nlmfo restart`: stop and start the NFS server of this node, and keep its clients' locks.

use super::require_root;
use super::whole::{self, Kind};
use crate::cli::RestartArgs;
use crate::exit::{Exit, Failure};
use crate::failover::watch::observe;
use crate::failover::whole::node::NodeServer;
use crate::failover::whole::report::RestartReport;
use crate::failover::whole::run::{self, Halves, Plan};
use crate::notify::config::Config;
use crate::notify::state_dir::StateDir;

pub fn run(args: &RestartArgs) -> Result<Exit, Failure> {
    require_root()?;
    let plan = Plan {
        halves: halves(args),
        state: StateDir::new(&args.state.state_dir),
        config: Config::read(args.names.config.as_deref()).map_err(anyhow::Error::from)?,
        force: args.force,
        deadline: args.deadline,
        moving: None,
    };
    let kind = Kind {
        name: "restart",
        schema: "nlmfo.last-restart/1",
        if_interrupted: "see `nlmfo restart --help` for how to continue",
    };
    let work = work(&plan, args);
    whole::run(&kind, &plan.state, args.json, RestartReport::exit, work)
}

fn halves(args: &RestartArgs) -> Halves {
    let asked = [
        (args.record_only, Halves::Record),
        (args.stop_only, Halves::Stop),
        (args.prepare_only, Halves::Prepare),
        (args.start_only, Halves::Start),
    ];
    let only = asked.into_iter().find(|(is_asked, _)| *is_asked);
    only.map_or(Halves::Both, |(_, halves)| halves)
}

async fn work(plan: &Plan, args: &RestartArgs) -> Result<RestartReport, Failure> {
    let (stop, start) = (args.stop_command.clone(), args.start_command.clone());
    let server = NodeServer::find(&plan.state, stop, start, args.service_deadline).await;
    let server = server.map_err(anyhow::Error::from)?;
    run::run(plan, &server, observe).await
}
