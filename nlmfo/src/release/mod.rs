//! How the locks of one VIP are released.
//!
//! Several ways lead there, and which of them works depends on the kernel: see the
//! table in [`choose`], which decides. Each way is a [`Way`] in a file of its own. None
//! of them is believed: what counts is a snapshot of lockd's locks afterwards.

pub mod choose;
pub mod filesystem;
pub mod free_all;
pub mod reboot;
pub mod rfc_file;
pub mod route;
pub mod target;
pub mod turn;
pub mod unlock_ip;

use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::files::lock::LockError;
use crate::kernel::netlink::NetlinkError;
use crate::kernel::nfsd::NfsdError;
use crate::observe::host::Host;

pub use target::Target;
pub use turn::Turn;

/// A way to release the locks of one VIP.
pub trait Way {
    fn kind(&self) -> WayKind;

    /// Does it, once. An error says that the way as a whole could not be gone; what
    /// failed for single hosts is in the report. Dropping the future leaves nothing
    /// behind in the kernel.
    fn release(&self, job: &Job<'_>) -> impl Future<Output = Result<Report, Error>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum WayKind {
    /// `/proc/fs/nfsd/nlm_unlock`, as the RFC for lock failover proposed it.
    RfcFile,
    /// Netlink `NFSD_CMD_UNLOCK_IP` or `/proc/fs/nfsd/unlock_ip`.
    UnlockIp,
    /// NLM FREE_ALL in the name of each client.
    FreeAll,
    /// `/proc/fs/nfsd/unlock_filesystem`, for exports that the operator named.
    Filesystem,
    /// SM_NOTIFY to this node's lockd, as if the client had rebooted.
    Reboot,
}

impl fmt::Display for WayKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            WayKind::RfcFile => "nlm_unlock",
            WayKind::UnlockIp => "unlock_ip",
            WayKind::FreeAll => "FREE_ALL",
            WayKind::Filesystem => "unlock_filesystem",
            WayKind::Reboot => "SM_NOTIFY",
        })
    }
}

/// What to release: one VIP, and the hosts that a snapshot shows on it.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub vip: IpAddr,
    /// Every lockd host with a lock, waiting request or share through `vip`.
    pub targets: &'a [Target],
    /// Ours for as long as this takes.
    pub turn: &'a Turn,
}

/// What one way did. Only a snapshot tells whether it helped.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub way: WayKind,
    /// In words: the file or command used, or how many calls were made.
    pub action: String,
    /// For ways that go host by host; empty otherwise.
    pub hosts: Vec<HostReport>,
    #[serde(rename = "took_ms", serialize_with = "milliseconds")]
    pub took: Duration,
}

impl Report {
    /// Hosts for which the way failed.
    pub fn failures(&self) -> impl Iterator<Item = &HostReport> {
        self.hosts.iter().filter(|report| report.outcome.is_err())
    }
}

/// What one way did for one host.
#[derive(Clone, Debug, Serialize)]
pub struct HostReport {
    pub host: Host,
    /// What was called, or what went wrong, in words.
    pub outcome: Result<String, String>,
    #[serde(rename = "took_ms", serialize_with = "milliseconds")]
    pub took: Duration,
}

/// Why a way could not be gone at all.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ports(#[from] crate::observe::programs::ObserveError),
    #[error(
        "lockd listens on no port in this network namespace: start the NFS server (`systemctl start \
         nfs-server`)"
    )]
    NoLockd,
    #[error("calls in the clients' names need CAP_NET_ADMIN and a kernel with policy routing")]
    Route(#[from] route::Error),
    #[error(transparent)]
    Turn(#[from] LockError),
    #[error(transparent)]
    Nfsd(#[from] NfsdError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error("the write to the kernel was interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Runs what blocks in the kernel (a release walks all of lockd's files) beside the
/// runtime, so that ctrl-C is heard meanwhile.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await?
}

fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e3)
}
