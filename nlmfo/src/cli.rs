//! The command line: every command of `nlmfo`, and the options of most.

mod clients;
mod doctor;
mod failover;
pub mod manual;
mod parts;
mod restart;
mod serve;
mod server;
mod targeted;
mod values;
pub mod version;

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub(crate) use self::clients::ClientsArgs;
pub(crate) use self::doctor::{DoctorArgs, PeerArgs};
pub(crate) use self::failover::{FailoverArgs, PairArgs, Phase, ReleaseArgs, TakeoverArgs};
pub(crate) use self::restart::RestartArgs;
pub(crate) use self::serve::{Listen, ServeArgs};
pub(crate) use self::server::{CheckServerArgs, NamedServer, ServerAction, ServerArgs, StartArgs};
pub(crate) use self::targeted::TargetedArgs;
use self::values::{address, interval, name, not_empty, speed, time, vip};
use crate::notify::callout::Event;
use crate::notify::state_dir;

/// Move NFS locks between servers, one virtual server address (VIP) at a time, and verify
/// the result in the kernel.
///
/// Exit status: 0 done and confirmed; 1 could not run; 2 wrong usage; 3 ran, but
/// the result is not confirmed; 4 this kernel or node lacks something required;
/// 5 confirmed, but clients were unreachable or reclaims are missing.
///
/// TIME is a number of seconds (90, 0.5) or numbers with units (90s, 1m30s, 2h, 500ms),
/// greater than 0 and at most 24h.
#[derive(Debug, Parser)]
#[command(version, long_version = version::LONG, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

impl Cli {
    /// # Errors
    /// The arguments are wrong, or ask for help or the version.
    pub fn from_arguments(arguments: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Cli::command();
        let matches = command.try_get_matches_from_mut(arguments)?;
        parts::check(&matches)
            .map_err(|error| command.error(clap::error::ErrorKind::ArgumentConflict, error))?;
        Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Check what this kernel and node support, and say how to fix what is missing
    Check(CheckArgs),
    /// Show whether this node can give up or take over each VIP now, and what would be lost
    Doctor(DoctorArgs),
    /// List locks, waiters and NFSv4 state with their VIP and client
    Locks(LocksArgs),
    /// Release the state of one client, one file or one lock, and verify it
    Release(TargetedArgs),
    /// Move the locks of a VIP: release them, let clients reclaim them, verify both
    Failover(Box<FailoverArgs>),
    /// Restart the NFS server of this node so that its clients keep their locks
    Restart(RestartArgs),
    /// Start, stop and show NFS servers that serve one VIP each, in namespaces of their own
    Server(ServerArgs),
    /// Start, end or list grace periods for single VIPs
    Grace(GraceArgs),
    /// Notify the clients of one VIP that they must reclaim (SM_NOTIFY)
    Notify(NotifyArgs),
    /// List the clients of each VIP, or edit the client book
    Clients(ClientsArgs),
    /// Keep the client book; serve metrics and report events
    Serve(ServeArgs),
    /// Act as statd's callout program (rpc.statd --ha-callout)
    HaCallout(CalloutArgs),
    /// Show VIPs, locks, waiters and failovers live
    Watch(WatchArgs),
    /// Test the lock manager of this kernel (test machines only)
    Probe(ProbeArgs),
    /// Remove everything that nlmfo left in the kernel
    Cleanup(CleanupArgs),
    /// Attach the gate to new network devices while a grace window is open; started by `grace`
    #[command(name = crate::grace::keeper::COMMAND, hide = true)]
    GraceKeeper,
    /// Keep the namespaces of `probe` open until standard input ends
    #[command(name = crate::testbed::node::COMMAND, hide = true)]
    Hold { name: String },
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Check whether this node can take over this VIP (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Wait this long for services that are not ready
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub wait_services: Option<Duration>,
    #[command(flatten)]
    pub state: StateArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LocksArgs {
    /// Show only locks taken through this server address (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Show only locks of this client (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub client: Vec<IpAddr>,
    /// Show only state of this NFS version (3 means NLM locks)
    #[arg(long, value_name = "VERSION", value_enum)]
    pub nfs: Option<NfsVersion>,
    /// Show only state on this file, also under its other names
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// Show only state on the filesystem that contains PATH
    #[arg(long, value_name = "PATH", conflicts_with = "file")]
    pub filesystem: Option<PathBuf>,
    /// Show only blocked lock requests, and whose locks they wait for
    #[arg(long)]
    pub waiters: bool,
    /// Show the NFSv3 locks of all network namespaces
    #[arg(long)]
    pub all_netns: bool,
    #[command(flatten)]
    pub filter: ServerFilter,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// The servers to show, of those that run on the node.
#[derive(Debug, Args)]
pub(crate) struct ServerFilter {
    /// Show only this server of the node, as `nlmfo server list` names it, or `node` for the
    /// node's own
    #[arg(long, value_name = "NAME")]
    pub server: Option<String>,
}

/// An NFS version. The kernel keeps the state of each separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum NfsVersion {
    #[value(name = "3")]
    V3,
    #[value(name = "4")]
    V4,
}

/// How to run nlmfo on another node.
#[derive(Clone, Debug, Args)]
pub(crate) struct RemoteArgs {
    /// Run commands on HOST with this program and its first arguments; nlmfo appends the host
    /// and one shell command line
    #[arg(long, value_name = "COMMAND", default_value = "ssh -o BatchMode=yes")]
    #[arg(value_parser = OsStringValueParser::new().try_map(not_empty))]
    pub rsh: OsString,
    /// Path of nlmfo on HOST
    #[arg(long, value_name = "PATH", default_value = "nlmfo")]
    #[arg(value_parser = OsStringValueParser::new().try_map(not_empty))]
    pub remote_nlmfo: OsString,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("action").required(true).args(["duration", "end", "list"])))]
#[command(mut_arg("server", |server| server.requires("list")))]
pub(crate) struct GraceArgs {
    /// Virtual server address (repeatable; optional with --list)
    #[arg(long, value_name = "ADDRESS", required_unless_present = "list", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Start grace for this long, or set the time left if it has started already
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub duration: Option<Duration>,
    /// End grace now
    #[arg(long)]
    pub end: bool,
    /// List grace windows with time left, reclaims, refused locks and violations
    #[arg(long)]
    pub list: bool,
    /// New locks to refuse during grace
    #[arg(long, value_enum, default_value = "vip", conflicts_with_all = ["end", "list"])]
    pub scope: Scope,
    /// Exported directory of the filesystem, for `--scope filesystem` (repeatable)
    #[arg(long, value_name = "PATH", conflicts_with_all = ["end", "list"])]
    #[arg(required_if_eq("scope", "filesystem"))]
    pub filesystem: Vec<PathBuf>,
    #[command(flatten)]
    pub filter: ServerFilter,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Which new locks a grace window refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scope {
    /// Locks through the VIP
    Vip,
    /// Also locks on the VIP's filesystem through other addresses
    Filesystem,
}

/// The state directory: data that must survive processes and nodes.
#[derive(Clone, Debug, Args)]
pub(crate) struct StateArgs {
    /// Directory of the client book and the state numbers; the nodes of a cluster should share it
    #[arg(long, value_name = "DIR", env = "NLMFO_STATE_DIR", default_value = state_dir::DEFAULT)]
    pub state_dir: PathBuf,
}

/// The names of the VIPs.
#[derive(Clone, Debug, Args)]
pub(crate) struct NamesArgs {
    /// File with the names that clients mount by [default: /etc/nlmfo.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct NotifyArgs {
    /// Virtual server address; it must be up on this node
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: IpAddr,
    /// Notify this client instead of all clients in the client book (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub client: Vec<IpAddr>,
    /// Notify the VIP's clients in this release record instead of those in the client book
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Name that clients mount by (repeatable) [default: the configured names, the result of a
    /// reverse lookup, and the address]
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: Vec<String>,
    /// Maximum time to reach the clients
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub deadline: Duration,
    #[command(flatten)]
    pub names: NamesArgs,
    #[command(flatten)]
    pub state: StateArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CalloutArgs {
    /// Event that statd reports
    #[arg(value_enum)]
    pub event: Event,
    /// Client, as statd names it
    #[arg(value_name = "CLIENT")]
    pub client: OsString,
    /// Name of this node; for sm-notify, the address that the client was notified from
    #[arg(value_name = "NODE")]
    pub node: OsString,
    /// State number sent to the client (sm-notify only)
    #[arg(value_name = "STATE")]
    pub state_number: Option<String>,
    /// Run your own callout as `PROGRAM EVENT CLIENT VIP`; without it, print the VIPs
    #[arg(long, value_name = "PROGRAM", env = "NLMFO_CALLOUT")]
    pub callout: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub in_background: bool,
    #[command(flatten)]
    pub state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// Print one table with the rates of one interval, then exit
    #[arg(long)]
    pub once: bool,
    /// Print one JSON object per line and tick instead of the screen
    #[arg(long, conflicts_with = "replay")]
    pub json: bool,
    /// Write each tick to FILE too, for --replay
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replay", "once"])]
    pub record: Option<PathBuf>,
    /// Play a recording instead of showing this node; works without root
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// Playback speed: 1 is that of the recording
    #[arg(long, value_name = "FACTOR", default_value = "1", requires = "replay")]
    #[arg(value_parser = speed)]
    pub speed: f64,
    /// Time between two updates; nlmfo lengthens it if updates use more than 5 % of a core
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// Use only ASCII characters
    #[arg(long)]
    pub ascii: bool,
    #[command(flatten)]
    pub filter: ServerFilter,
    #[command(flatten)]
    pub state: StateArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CleanupArgs {
    #[command(flatten)]
    pub state: StateArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ProbeArgs {
    /// List the checks and what each verifies, without running them
    #[arg(long)]
    pub list: bool,
    /// Run only checks whose names contain TEXT (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// Skip checks whose names contain TEXT (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub skip: Vec<String>,
    /// Maximum time for each check
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub timeout: Duration,
    /// Format of the report on standard output
    #[arg(long, value_enum, default_value = "tap")]
    pub format: ProbeFormat,
    /// Compare with an earlier report (`--format json`) and fail only on regressions
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Run even if this machine serves NFS clients; their locks are at risk
    #[arg(long)]
    pub with_live_clients: bool,
}

/// Format of the report of `probe`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProbeFormat {
    /// TAP 13, one line as each check ends
    Tap,
    /// JUnit XML
    Junit,
    /// One JSON object
    Json,
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod english;
