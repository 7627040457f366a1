//! The arguments of `nlmfo restart`.

use std::ffi::OsString;
use std::time::Duration;

use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};

use super::values::{not_empty, time};
use super::{NamesArgs, StateArgs};

/// What `nlmfo restart` takes.
#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("half").args(["record_only", "stop_only", "prepare_only", "start_only"])))]
pub struct RestartArgs {
    /// Record what clients hold, recall delegations and fence NFSv3 locks, without a stop; run
    /// this before another program stops the server
    #[arg(long)]
    pub record_only: bool,
    /// Record what clients hold, stop the server, and verify that nothing is left
    #[arg(long)]
    pub stop_only: bool,
    /// Pause leases if a record waits for the next start; run this after a boot, before another
    /// program starts the server
    #[arg(long)]
    pub prepare_only: bool,
    /// Start the server unless it runs, notify the clients, and end grace once all locks are
    /// back
    #[arg(long)]
    pub start_only: bool,
    /// Run this shell command to stop the server [default: stop nfsd, and nfs-server.service
    /// where systemd runs it]
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["prepare_only", "start_only"])]
    #[arg(value_parser = OsStringValueParser::new().try_map(not_empty))]
    pub stop_command: Option<OsString>,
    /// Run this shell command to start the server [default: start nfs-server.service, or run
    /// rpc.nfsd]
    #[arg(long, value_name = "COMMAND", conflicts_with_all = ["record_only", "stop_only", "prepare_only"])]
    #[arg(value_parser = OsStringValueParser::new().try_map(not_empty))]
    pub start_command: Option<OsString>,
    /// Stop the server even if some of its clients cannot reclaim
    #[arg(long, conflicts_with_all = ["record_only", "prepare_only", "start_only"])]
    pub force: bool,
    /// Maximum time for each command that stops or starts a service
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub service_deadline: Duration,
    /// Maximum time for the reclaims; the kernel's own grace may end earlier
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = time)]
    pub deadline: Duration,
    #[command(flatten)]
    pub names: NamesArgs,
    #[command(flatten)]
    pub state: StateArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}
