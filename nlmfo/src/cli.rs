//! Every argument of the tool, in one place.

mod parts;
mod values;

use std::ffi::OsString;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use self::values::{address, host, interval, name, not_empty, speed, time, vip};
use crate::notify::callout::Event;
use crate::notify::state_dir;

/// NLM lock failover per virtual server address, with proof from the kernel's own
/// lock lists.
///
/// Exit status: 0 done and confirmed; 1 could not run; 2 wrong usage; 3 ran, but
/// the result is not confirmed; 4 this kernel or node lacks something needed;
/// 5 confirmed, with clients unreachable or reclaims missing.
///
/// TIME is a number of seconds (90, 0.5), or numbers with units (90s, 1m30s, 2h, 500ms);
/// more than 0 and at most 24h.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// # Errors
    /// What is wrong with the arguments, or that help or the version was asked for.
    pub fn from_arguments(arguments: impl Iterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut command = Cli::command();
        let matches = command.try_get_matches_from_mut(arguments)?;
        parts::check(&matches)
            .map_err(|error| command.error(clap::error::ErrorKind::ArgumentConflict, error))?;
        Cli::from_arg_matches(&matches).map_err(|error| error.format(&mut command))
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// What this kernel and node support, each with the reason and the remedy
    Check(CheckArgs),
    /// Who holds which lock through which address
    Locks(LocksArgs),
    /// Move a VIP's locks: release them here, have them reclaimed there, and prove it
    Failover(Box<FailoverArgs>),
    /// Hold a grace period for a VIP alone: refuse new locks, let clients reclaim
    Grace(GraceArgs),
    /// Tell a VIP's clients, and no others, to reclaim: SM_NOTIFY from the VIP
    Notify(NotifyArgs),
    /// Who are the clients of which VIP, by the client book and by lockd
    Clients(ClientsArgs),
    /// Keep the client book: note who locks through which VIP
    Serve(ServeArgs),
    /// statd's callout program, with the VIPs of the client
    HaCallout(CalloutArgs),
    /// Live dashboard: which VIP holds what, who waits, and how a failover goes
    Watch(WatchArgs),
    /// Test what this kernel's lock manager does: for machines that serve nobody
    Probe(ProbeArgs),
    /// Remove every trace of nlmfo from the kernel
    Cleanup(CleanupArgs),
    /// Follows network devices while a grace period is open; started by `grace`
    #[command(name = crate::grace::keeper::COMMAND, hide = true)]
    GraceKeeper,
    /// Keeps namespaces of `probe` until standard input ends
    #[command(name = crate::bed::place::COMMAND, hide = true)]
    Hold { name: String },
}

#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Look for a takeover of this VIP (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Wait for services that would lose locks as they are
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub wait_services: Option<Duration>,
    #[command(flatten)]
    pub state: StateArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct LocksArgs {
    /// Only locks taken through this server address (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Only locks of this client (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub client: Vec<IpAddr>,
    /// Only state of this NFS version; 3 has its locks by NLM
    #[arg(long, value_name = "VERSION", value_enum)]
    pub nfs: Option<NfsVersion>,
    /// Only state on this file, by whichever name
    #[arg(long, value_name = "PATH")]
    pub file: Option<PathBuf>,
    /// Only state on files of the filesystem that holds PATH: what keeps it busy
    #[arg(long, value_name = "PATH", conflicts_with = "file")]
    pub filesystem: Option<PathBuf>,
    /// Only NFSv3's blocked requests
    #[arg(long, conflicts_with = "nfs")]
    pub waiters: bool,
    /// NFSv3 locks of every network namespace, not of this one alone
    #[arg(long)]
    pub all_netns: bool,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// An NFS version, whose state is kept apart from the other's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum NfsVersion {
    #[value(name = "3")]
    V3,
    #[value(name = "4")]
    V4,
}

/// A part of a failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Phase {
    /// On the node that gives the VIP up: release its locks and prove it
    Release,
    /// On the node that takes it over: grace for it alone, until its clients have
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
    /// The virtual server address that moves (repeatable)
    #[arg(long, value_name = "ADDRESS", required = true, value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Which part to do on this node; without it both, one after the other
    #[arg(long, value_enum)]
    pub phase: Option<Phase>,
    /// Print one JSON object (both phases: one a line)
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

/// What concerns two nodes, driven from the one that gives up.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Both nodes, from the one that gives up")]
pub struct PairArgs {
    /// Move the VIPs to this node: open grace there, release here, hand over, take over
    /// there
    #[arg(long, value_name = "HOST", value_parser = host, conflicts_with_all = ["phase", "dry_run", "expect"])]
    #[arg(value_parser = host)]
    pub to: Option<String>,
    /// How to run a command on HOST: a program with its first arguments, which takes the
    /// host and a line for the shell there
    #[arg(
        long,
        value_name = "COMMAND",
        default_value = "ssh -o BatchMode=yes",
        requires = "to",
        value_parser = OsStringValueParser::new().try_map(not_empty)
    )]
    pub rsh: OsString,
    /// nlmfo's path on HOST
    #[arg(long, value_name = "PATH", default_value = "nlmfo", requires = "to")]
    #[arg(value_parser = OsStringValueParser::new().try_map(not_empty))]
    pub remote_nlmfo: OsString,
    /// Run as `PROGRAM HOST VIP...` when the locks are released: it moves the filesystem and
    /// then the address to HOST; without it, somebody else does
    #[arg(long, value_name = "PROGRAM", requires = "to")]
    pub hand_over: Option<PathBuf>,
    /// How long PROGRAM may take, or else the VIPs to come up on HOST
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time, requires = "to")]
    pub hand_over_deadline: Duration,
}

/// What concerns the release alone.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Release")]
pub struct ReleaseArgs {
    /// Write the VIPs, clients and locks to FILE, for the node that takes over
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// Show what would be done; change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// If locks remain, also unlock this exported filesystem, through whichever
    /// address its locks were taken (repeatable)
    #[arg(long, value_name = "PATH")]
    pub unlock_filesystem: Vec<PathBuf>,
    /// If locks remain, also tell this node's lockd that clients have rebooted
    /// which use no other address
    #[arg(long)]
    pub reboot_notice: bool,
    /// How long to try before giving up
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub deadline: Duration,
    /// How long the VIP's lock traffic stays dropped, from before the record is taken
    /// until the VIP leaves this node, at most
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub fence: Duration,
    /// Do not drop the VIP's lock traffic: you have cut the address off yourself
    #[arg(long, conflicts_with = "fence")]
    pub no_fence: bool,
    /// Release NFSv3 locks alone: what NFSv4 clients hold through the VIP is not looked
    /// at, and lost when it moves
    #[arg(long, value_name = "VERSION", value_enum)]
    pub nfs: Option<OnlyNfs3>,
}

/// The one NFS version that a release can be confined to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OnlyNfs3 {
    #[value(name = "3")]
    Nfs3,
}

/// What concerns the takeover alone.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Takeover")]
pub struct TakeoverArgs {
    /// The record that the release wrote, or - for standard input: grace ends as soon as
    /// its locks are back
    #[arg(long, value_name = "FILE")]
    pub expect: Option<PathBuf>,
    /// How long the VIP's grace may last
    #[arg(long, value_name = "TIME", default_value = "90s", value_parser = time)]
    pub grace: Duration,
    /// Wait, with grace open, for services of this node that would lose the locks as they
    /// are (see `nlmfo check`); without it the takeover is refused
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub wait_services: Option<Duration>,
    /// Wait, with grace open, until the VIP is an address of this node
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub wait_address: Option<Duration>,
    /// Run PROGRAM with the VIP as its argument when it is up: it tells the VIP's clients
    /// to reclaim; else nlmfo tells those in the record and in the client book
    #[arg(long, value_name = "PROGRAM")]
    pub notify: Option<PathBuf>,
    /// Tell nobody: somebody else does
    #[arg(long, conflicts_with = "notify")]
    pub no_notify: bool,
    /// Where the names are configured that clients mount the VIP by [default:
    /// /etc/nlmfo.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Through which addresses new locks are refused meanwhile
    #[arg(long, value_enum, default_value = "vip")]
    pub scope: Scope,
    /// With `--scope filesystem`: an exported folder of the filesystem that moves
    /// (repeatable)
    #[arg(long, value_name = "PATH", required_if_eq("scope", "filesystem"))]
    pub filesystem: Vec<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("action").required(true).args(["duration", "end", "list"])))]
pub struct GraceArgs {
    /// The virtual server address that is in grace (repeatable); with --list, only these
    #[arg(long, value_name = "ADDRESS", required_unless_present = "list", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Open a window, or give an open one this much time from now on
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub duration: Option<Duration>,
    /// End the window now
    #[arg(long)]
    pub end: bool,
    /// Show the windows: time left, what was reclaimed and refused, violations
    #[arg(long)]
    pub list: bool,
    /// Through which addresses new locks are refused
    #[arg(long, value_enum, default_value = "vip", conflicts_with_all = ["end", "list"])]
    pub scope: Scope,
    /// With `--scope filesystem`: an exported folder of the filesystem that moved
    /// (repeatable)
    #[arg(long, value_name = "PATH", conflicts_with_all = ["end", "list"])]
    #[arg(required_if_eq("scope", "filesystem"))]
    pub filesystem: Vec<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// Which new locks a window refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Scope {
    /// Those that come through the VIP
    Vip,
    /// Also those on the files of its filesystem, through whatever address
    Filesystem,
}

/// Where what outlives processes and nodes is kept.
#[derive(Clone, Debug, Args)]
pub struct StateArgs {
    /// The folder of the client book and the state numbers; a cluster's nodes may share it
    #[arg(long, value_name = "DIR", env = "NLMFO_STATE_DIR", default_value = state_dir::DEFAULT)]
    pub state_dir: PathBuf,
}

#[derive(Debug, Args)]
pub struct NotifyArgs {
    /// The virtual server address, which must be up on this node
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: IpAddr,
    /// Tell this client (repeatable), not all in the client book
    #[arg(long, value_name = "ADDRESS", value_parser = address)]
    pub client: Vec<IpAddr>,
    /// Tell the VIP's clients in the record that a release wrote, not those in the book
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// What clients mount the VIP by (repeatable); else what is configured, what a reverse
    /// lookup gives, and the address
    #[arg(long, value_name = "NAME", value_parser = name)]
    pub name: Vec<String>,
    /// How long to try
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub deadline: Duration,
    /// Where the names are configured [default: /etc/nlmfo.toml, if it is there]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub state: StateArgs,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("action").args(["import", "export", "forget"])))]
pub struct ClientsArgs {
    /// Only clients of this server address (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    /// Only what the book says; lockd is not asked
    #[arg(long, conflicts_with = "action")]
    pub book: bool,
    /// Note the clients in statd's folder DIR (`/var/lib/nfs/sm`) as clients of the VIP
    #[arg(long, value_name = "DIR", requires = "vip")]
    pub import: Option<PathBuf>,
    /// Write records of the VIP's clients to DIR as statd has them, for `sm-notify -P`
    #[arg(long, value_name = "DIR", requires = "vip")]
    pub export: Option<PathBuf>,
    /// Strike a client of the VIP off the book, until it locks again
    #[arg(long, value_name = "ADDRESS", requires = "vip", value_parser = address)]
    pub forget: Option<IpAddr>,
    #[command(flatten)]
    pub state: StateArgs,
    /// Print one JSON object
    #[arg(long, conflicts_with = "action")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ServeArgs {
    /// Only clients of this server address (repeatable)
    #[arg(long, value_name = "ADDRESS", value_parser = vip)]
    pub vip: Vec<IpAddr>,
    #[command(flatten)]
    pub state: StateArgs,
}

#[derive(Debug, Args)]
pub struct CalloutArgs {
    /// Why statd calls
    #[arg(value_enum)]
    pub event: Event,
    /// The client, as statd monitors it
    #[arg(value_name = "CLIENT")]
    pub client: OsString,
    /// This node's name; with sm-notify, the address that the client was told from
    #[arg(value_name = "NODE")]
    pub node: OsString,
    /// With sm-notify, the state number that the client was told
    #[arg(value_name = "STATE")]
    pub state_number: Option<String>,
    /// The site's own callout, run as `PROGRAM EVENT CLIENT VIP`; without it, the VIPs are
    /// printed
    #[arg(long, value_name = "PROGRAM", env = "NLMFO_CALLOUT")]
    pub callout: Option<PathBuf>,
    #[arg(long, hide = true)]
    pub in_background: bool,
    #[command(flatten)]
    pub state: StateArgs,
}

#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Print a table once, with the rates of one interval, and end
    #[arg(long)]
    pub once: bool,
    /// Print one JSON object a line at each tick instead of a screen
    #[arg(long, conflicts_with = "replay")]
    pub json: bool,
    /// Also write each tick to FILE, for --replay
    #[arg(long, value_name = "FILE", conflicts_with_all = ["replay", "once"])]
    pub record: Option<PathBuf>,
    /// Show a recording instead of this node; needs no root
    #[arg(long, value_name = "FILE")]
    pub replay: Option<PathBuf>,
    /// How many times as fast as it was the recording goes
    #[arg(long, value_name = "TIMES", default_value = "1", requires = "replay")]
    #[arg(value_parser = speed)]
    pub speed: f64,
    /// How often to look; longer by itself where that would cost 5 % of a core
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = interval)]
    pub interval: Duration,
    /// Only ASCII characters
    #[arg(long)]
    pub ascii: bool,
    #[command(flatten)]
    pub state: StateArgs,
}

#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct ProbeArgs {
    /// List the checks, and what each proves; run none
    #[arg(long)]
    pub list: bool,
    /// Only checks whose names contain TEXT (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// No checks whose names contain TEXT (repeatable)
    #[arg(long, value_name = "TEXT")]
    pub skip: Vec<String>,
    /// How long each check may take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = time)]
    pub timeout: Duration,
    /// What to print on standard output
    #[arg(long, value_enum, default_value = "tap")]
    pub format: ProbeFormat,
    /// An earlier report (`--format json`): fail only on what has become worse
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,
    /// Go on although this machine serves NFS clients, whose locks it puts at risk
    #[arg(long)]
    pub with_live_clients: bool,
}

/// How a probe is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProbeFormat {
    /// TAP 13, each check as it ends
    Tap,
    /// JUnit XML
    Junit,
    /// One JSON object
    Json,
}

#[cfg(test)]
mod tests;
