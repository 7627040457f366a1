//! The options of `nlmfo failover`.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::values::{host, time, vip};
use super::{NamesArgs, RemoteArgs, Scope, StateArgs};

/// A phase of a failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// On the node that gives up the VIP: release its locks and verify the release
    Release,
    /// On the node that takes over the VIP: hold grace for it until its clients have
    /// reclaimed
    Takeover,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Phase::Release => "release",
            Phase::Takeover => "takeover",
        })
    }
}

#[derive(Clone, Debug, Args)]
pub struct FailoverArgs {
    /// Move this virtual server address (repeatable)
    #[arg(long, value_name = "ADDRESS", required_unless_present = "whole_server", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Move the node's own NFS server with all its VIPs, NFSv3 and NFSv4 together: stop it on
    /// one node and start it on another, in its own grace
    #[arg(long)]
    pub whole_server: bool,
    /// Run only this phase on this node [default: both, one after the other]
    #[arg(long, value_enum)]
    pub phase: Option<Phase>,
    /// Print one JSON object (for both phases: one per line)
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub state: StateArgs,
    #[command(flatten)]
    pub release: ReleaseArgs,
    #[command(flatten)]
    pub takeover: TakeoverArgs,
    #[command(flatten)]
    pub pair: PairArgs,
}

/// Options of a move between two nodes, run on the one that gives up the VIP.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Move to another node")]
#[command(mut_arg("rsh", |rsh| rsh.requires("to")))]
#[command(mut_arg("remote_nlmfo", |nlmfo| nlmfo.requires("to")))]
pub struct PairArgs {
    /// Move the VIPs to HOST: start grace there, release here, hand over, take over
    /// there
    #[arg(long, value_name = "HOST", value_parser = host, conflicts_with_all = ["phase", "dry_run", "expect"])]
    #[arg(value_parser = host)]
    pub to: Option<String>,
    #[command(flatten)]
    pub remote: RemoteArgs,
    /// Run `PROGRAM HOST VIP...` after the release, to move the filesystem and then the
    /// address to HOST; without it, nlmfo waits until the address has been moved
    #[arg(long, value_name = "PROGRAM", requires = "to")]
    pub hand_over: Option<PathBuf>,
    /// Maximum time for PROGRAM, or for the VIPs to come up on HOST
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time, requires = "to")]
    pub hand_over_deadline: Duration,
}

/// Options of the release.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Release")]
pub struct ReleaseArgs {
    /// Write the release record (VIPs, clients, locks) to FILE, for --expect on the other node
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Show the plan and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Release all locks on this exported filesystem, including those of other VIPs, if locks
    /// remain (repeatable)
    #[arg(long, value_name = "PATH")]
    pub unlock_filesystem: Vec<PathBuf>,
    /// Tell lockd that the clients whose locks remain rebooted, except clients that also use
    /// other VIPs
    #[arg(long)]
    pub reboot_notice: bool,
    /// Maximum time for the release
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub deadline: Duration,
    /// Maximum time for the fence, which drops the VIP's lock traffic until the VIP leaves this
    /// node
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub fence: Duration,
    /// Do not fence the VIP; use this only if clients cannot reach it
    #[arg(long, conflicts_with = "fence")]
    pub no_fence: bool,
    /// Release only NFSv3 locks and ignore NFSv4 state, which is lost when the VIP moves
    #[arg(long, value_name = "VERSION", value_enum)]
    pub nfs: Option<OnlyNfs3>,
}

/// The only NFS version that a release can be limited to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnlyNfs3 {
    #[value(name = "3")]
    Nfs3,
}

/// Options of the takeover.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Takeover")]
pub struct TakeoverArgs {
    /// Read the release record from FILE (- for standard input) and end grace as soon as all
    /// its locks are reclaimed
    #[arg(long, value_name = "FILE")]
    pub expect: Option<PathBuf>,
    /// Maximum grace time
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = time)]
    pub grace: Duration,
    /// Wait this long, in grace, for services that are not ready (see `nlmfo check`); without
    /// this option, the takeover is refused
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub wait_services: Option<Duration>,
    /// Wait this long, in grace, until the VIP is up on this node
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub wait_address: Option<Duration>,
    /// Run `PROGRAM VIP` to notify the clients, once the VIP is up; without it, nlmfo notifies
    /// the clients in the release record and in the client book
    #[arg(long, value_name = "PROGRAM")]
    pub notify: Option<PathBuf>,
    /// Do not notify clients; use this if another program does
    #[arg(long, conflicts_with = "notify")]
    pub no_notify: bool,
    #[command(flatten)]
    pub names: NamesArgs,
    /// New locks to refuse during grace
    #[arg(long, value_enum, default_value = "vip")]
    pub scope: Scope,
    /// Exported directory of the filesystem, for `--scope filesystem` (repeatable)
    #[arg(long, value_name = "PATH", required_if_eq("scope", "filesystem"))]
    pub filesystem: Vec<PathBuf>,
    /// Start the VIP's own server even if another node did not stop it cleanly; use this only
    /// after that node was fenced: it is off or has no access to the storage
    #[arg(long, requires = "phase")]
    pub after_fencing: bool,
}
