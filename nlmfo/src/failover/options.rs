//! The options of a failover.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::pair::rsh::Rsh;
use crate::notify::state_dir::StateDir;

/// A failover of VIPs.
#[derive(Clone, Debug)]
pub struct Options {
    /// In order, each once.
    pub vips: Vec<IpAddr>,
    pub task: Task,
    /// Show the plan and change nothing.
    pub dry_run: bool,
    /// Where the client books, the state numbers and our own records are.
    pub state: StateDir,
    pub release: ReleaseOptions,
    pub takeover: TakeoverOptions,
}

/// Which phases are run, and where.
#[derive(Clone, Debug)]
pub enum Task {
    /// Release the VIPs on this node.
    Release,
    /// Take them over on this node.
    Takeover,
    /// Both on this node, one after the other.
    Both,
    /// Release them on this node, and take them over on another one.
    Move(OtherNode),
}

/// How the VIPs are released.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReleaseOptions {
    /// Where the release record is written.
    pub record: Option<PathBuf>,
    /// Exports that may be released as a whole.
    pub filesystems: Vec<PathBuf>,
    /// Whether lockd may be told that clients rebooted.
    pub reboot_notice: bool,
    /// Whether NFSv4 state is ignored.
    pub without_nfs4: bool,
    /// Maximum time for the release.
    pub deadline: Duration,
    /// Maximum time for the fence; none means no fence.
    pub fence: Option<Duration>,
}

impl Default for ReleaseOptions {
    fn default() -> Self {
        ReleaseOptions {
            record: None,
            filesystems: Vec::new(),
            reboot_notice: false,
            without_nfs4: false,
            deadline: Duration::from_secs(30),
            fence: Some(Duration::from_mins(1)),
        }
    }
}

/// How the VIPs are taken over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TakeoverOptions {
    /// Where the release record is read; a dash is standard input.
    pub expect: Option<PathBuf>,
    /// Maximum grace time.
    pub grace: Duration,
    /// How long to wait, in grace, for services that are not ready; none means no wait.
    pub wait_services: Option<Duration>,
    /// How long to wait, in grace, until the VIPs are up; none means no wait.
    pub wait_address: Option<Duration>,
    pub notify: Notify,
    /// The file with the names that clients mount by; none means the default one.
    pub config: Option<PathBuf>,
    /// Exported directories of the filesystems on which new locks are refused through every
    /// address during grace.
    pub filesystems: Vec<PathBuf>,
    /// Start a server of its own even if another node did not stop it cleanly.
    pub after_fencing: bool,
}

impl Default for TakeoverOptions {
    fn default() -> Self {
        TakeoverOptions {
            expect: None,
            grace: Duration::from_secs(90),
            wait_services: None,
            wait_address: None,
            notify: Notify::Nlmfo,
            config: None,
            filesystems: Vec::new(),
            after_fencing: false,
        }
    }
}

/// Who notifies the clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notify {
    Nlmfo,
    /// This program, run for each VIP.
    Program(PathBuf),
    /// Another program does.
    Nobody,
}

/// The node that the VIPs move to.
#[derive(Clone, Debug)]
pub struct OtherNode {
    pub rsh: Rsh,
    /// Moves the filesystem and the address; without it, somebody else does.
    pub hand_over: Option<PathBuf>,
    /// Maximum time for that program, or for the VIPs to come up there.
    pub hand_over_deadline: Duration,
}

impl Options {
    /// The dry run of a failover with default options.
    pub fn dry_run(vips: Vec<IpAddr>, state: StateDir) -> Self {
        Options {
            vips,
            task: Task::Both,
            dry_run: true,
            state,
            release: ReleaseOptions::default(),
            takeover: TakeoverOptions::default(),
        }
    }
}

impl Task {
    /// Whether clients reclaim in the end, here or on the other node.
    pub fn takes_over(&self) -> bool {
        !matches!(self, Task::Release)
    }
}
