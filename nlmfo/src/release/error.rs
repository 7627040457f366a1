//! Why a method failed as a whole.

use super::route;
use crate::files::lock::LockError;
use crate::kernel::netlink::NetlinkError;
use crate::kernel::nfsd::NfsdError;
use crate::observe::error::ObserveError;

/// Why a method failed as a whole.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Ports(#[from] ObserveError),
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
