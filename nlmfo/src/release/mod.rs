//! How the locks of one VIP are released.
//!
//! There are several methods; which of them works depends on the kernel: see the table in
//! [`choose`], which decides. Each is a [`Method`] in its own file. No return code is
//! trusted: what counts is a snapshot of lockd's locks afterwards.

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

/// A method to release the locks of one VIP.
pub trait Method {
    fn kind(&self) -> MethodKind;

    /// Applies the method once. An error means that it failed as a whole; failures of single
    /// hosts are in the report. Dropping the future leaves nothing behind in the kernel.
    fn release(&self, job: &Job<'_>) -> impl Future<Output = Result<Report, Error>>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MethodKind {
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

impl fmt::Display for MethodKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MethodKind::RfcFile => "nlm_unlock",
            MethodKind::UnlockIp => "unlock_ip",
            MethodKind::FreeAll => "FREE_ALL",
            MethodKind::Filesystem => "unlock_filesystem",
            MethodKind::Reboot => "SM_NOTIFY",
        })
    }
}

/// What to release: one VIP, and the hosts that a snapshot shows on it.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    pub vip: IpAddr,
    /// Every lockd host with a lock, waiting request or share through `vip`.
    pub targets: &'a [Target],
    /// Held while the method runs.
    pub turn: &'a Turn,
}

/// What one method did. Only a snapshot shows whether it worked.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub method: MethodKind,
    /// As text: the file or command used, or the number of calls.
    pub action: String,
    /// For methods that work per host; otherwise empty.
    pub hosts: Vec<HostReport>,
    #[serde(rename = "took_ms", serialize_with = "milliseconds")]
    pub took: Duration,
}

impl Report {
    /// Hosts for which the method failed.
    pub fn failures(&self) -> impl Iterator<Item = &HostReport> {
        self.hosts.iter().filter(|report| report.outcome.is_err())
    }
}

/// What one method did for one host.
#[derive(Clone, Debug, Serialize)]
pub struct HostReport {
    pub host: Host,
    /// What was called, or what failed, as text.
    pub outcome: Result<String, String>,
    #[serde(rename = "took_ms", serialize_with = "milliseconds")]
    pub took: Duration,
}

/// Why a method failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ports(#[from] crate::observe::programs::ObserveError),
    #[error(
        "lockd listens on no port in this network namespace: start the NFS server (`systemctl start \
         nfs-server`)"
    )]
    NoLockd,
    #[error("NLM calls for clients need CAP_NET_ADMIN and a kernel with policy routing")]
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

/// Runs a blocking kernel call (a release walks all of lockd's files) outside the runtime, so
/// that signals are handled meanwhile.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    tokio::task::spawn_blocking(work).await?
}

fn milliseconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((duration.as_secs_f64() * 1e6).round() / 1e3)
}
