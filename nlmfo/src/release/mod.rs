//! How the locks of one VIP are released.
//!
//! There are several methods; which of them works depends on the kernel: see the table in
//! [`choose`], which decides. Each is a [`Method`] in its own file. No return code is
//! trusted: what counts is a snapshot of lockd's locks afterwards.

pub(crate) mod choose;
mod error;
pub mod filesystem;
pub mod free_all;
pub mod reboot;
pub(crate) mod rfc_file;
pub mod route;
pub mod target;
pub(crate) mod turn;
pub mod unlock_ip;

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::LocalBoxFuture;
use serde::{Serialize, Serializer};

use crate::observe::counters::Counters;
use crate::observe::host::{Host, NlmVersion};
use crate::times;

pub(crate) use choose::{Attempt, Facts};
pub(crate) use error::Error;
pub use target::Target;
pub use turn::Turn;

/// A method to release the locks of one VIP: one file each, and one line in [`METHODS`].
pub trait Method: Sync {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// Its name in JSON.
    fn id(&self) -> &'static str;

    /// What it changes.
    fn reach(&self) -> Reach;

    /// Whether lockd has to answer a call for it.
    fn calls_lockd(&self) -> bool {
        false
    }

    /// Whether it can be used on this node. [`choose`] decides whether it was used already, and whether
    /// it reaches too far.
    fn suitability(&self, facts: &Facts) -> Suitability;

    /// Why it was chosen, beyond the failure of the others.
    fn merit(&self, facts: &Facts, tried: &[Attempt]) -> Option<String>;

    /// Maximum number of uses, as long as each use releases something.
    fn rounds(&self) -> usize {
        1
    }

    /// How many of the releases that the counters of a VIP saw during its use are its effect, for locks
    /// of that NLM version.
    fn dropped(&self, seen: &Counters, version: NlmVersion) -> u64;

    /// Applies the method once. An error means that it failed as a whole; failures of single
    /// hosts are in the report. Dropping the future leaves nothing behind in the kernel.
    fn release<'a>(&'a self, job: &'a Job<'a>) -> LocalBoxFuture<'a, Result<Report, Error>>;
}

/// In order of preference: made for this purpose, then exact, then not exact.
pub const METHODS: [MethodRef; 5] = [
    MethodRef(&rfc_file::RfcFile),
    MethodRef(&unlock_ip::UnlockIp),
    MethodRef(&free_all::FreeAll),
    MethodRef(&filesystem::Filesystem),
    MethodRef(&reboot::Reboot),
];

/// What a method changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Everything of the VIP on this network namespace's server.
    Vip,
    /// Everything of the VIP on the servers of all network namespaces.
    VipOfAllNamespaces,
    /// Everything that is locked on the filesystems that the operator named.
    Filesystems,
    /// Everything that the VIP's clients have here, through any address.
    Clients,
}

/// Whether a method can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Suitability {
    /// It can be used here.
    Fit,
    /// It cannot be used, for this reason (text for the report).
    Unfit(String),
    /// Not available here, and not worth a message.
    Absent,
}

/// One of [`METHODS`].
#[derive(Clone, Copy)]
pub struct MethodRef(pub &'static dyn Method);

impl std::ops::Deref for MethodRef {
    type Target = dyn Method;

    fn deref(&self) -> &Self::Target {
        self.0
    }
}

impl PartialEq for MethodRef {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for MethodRef {}

impl fmt::Debug for MethodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

impl fmt::Display for MethodRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for MethodRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}

/// What to release: one VIP, and the hosts that a snapshot shows on it.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// Whose locks, waiting requests and shares are released.
    pub vip: IpAddr,
    /// Inode number of this process's network namespace. Hosts of other namespaces cannot be reached by
    /// calls.
    pub netns: u32,
    /// Every lockd host with a lock, waiting request or share through `vip`.
    pub targets: &'a [Target],
    /// Clients that hold or wait for something through another VIP as well: see
    /// [`clients_of_others`](target::clients_of_others).
    pub elsewhere: &'a BTreeSet<IpAddr>,
    /// A path on each filesystem that may be released as a whole.
    pub filesystems: &'a [PathBuf],
    /// Held while the method runs.
    pub turn: &'a Turn,
    /// Time for all of it.
    pub deadline: Duration,
}

/// What one method did. Only a snapshot shows whether it worked.
#[derive(Clone, Debug)]
pub struct Report {
    /// As text: the file or command used, or the number of calls.
    pub action: String,
    /// For methods that work per host; otherwise empty.
    pub hosts: Vec<HostReport>,
}

impl Report {
    /// The report of a method that works in one step.
    fn whole(action: String) -> Self {
        Report {
            action,
            hosts: Vec::new(),
        }
    }

    /// Hosts for which the method failed.
    pub fn failures(&self) -> impl Iterator<Item = &HostReport> {
        self.hosts.iter().filter(|report| report.outcome.is_err())
    }
}

/// What one method did for one host.
#[derive(Clone, Debug, Serialize)]
pub struct HostReport {
    /// The host, in whose name lockd was called if the method calls lockd.
    pub host: Host,
    /// What was called, or what failed, as text.
    pub outcome: Result<String, String>,
    /// How long the calls for it took.
    #[serde(rename = "took_ms", serialize_with = "times::serialize")]
    pub took: Duration,
}

/// Runs a blocking kernel call (a release walks all of lockd's files) outside the runtime, so that
/// signals are handled in the meantime.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await?
}
