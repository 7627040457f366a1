//! How a server stops and starts.

use std::future::Future;
use std::net::IpAddr;
use std::path::PathBuf;

use crate::kernel::connections::Connection;
use crate::notify::sm::Listed;
use crate::server::program::ProgramError;

/// Why a server could not be stopped or started.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    Program(#[from] ProgramError),
    #[error("{0}")]
    Other(String),
}

/// The clients that cannot reclaim while something is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clients {
    Nfs3,
    Nfs4,
}

/// Something that clients need to reclaim, and that does not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotReady {
    pub clients: Clients,
    /// What it is, and why it does not run.
    pub reason: String,
}

/// A server that stops and starts as a whole. Its kernel files are those of this process's
/// namespaces.
pub trait Server: Sync {
    /// What it is and how it is stopped and started, for reports.
    fn title(&self) -> String;

    /// Stops its threads. Succeeds if they are stopped already.
    fn stop(&self) -> impl Future<Output = Result<(), ServerError>> + Send;

    /// Starts what must run before its threads do: nfsdcld, which listens when this returns, and statd.
    /// Returns what still does not run. By default, does nothing: the start does it.
    fn prepare(&self) -> impl Future<Output = Vec<NotReady>> + Send {
        async { Vec::new() }
    }

    /// Starts its threads. Succeeds if they run already.
    fn start(&self) -> impl Future<Output = Result<(), ServerError>> + Send;

    /// Deals with other programs that would notify clients later, when grace may be over: runs them
    /// now, or marks that they have run. `listed` is what statd's list was before the start.
    fn notify_at_boot(
        &self,
        _listed: &[Listed],
    ) -> impl Future<Output = Result<(), ServerError>> + Send {
        async { Ok(()) }
    }

    /// Brings up its addresses, once its grace is seen.
    fn appear(&self) -> impl Future<Output = Result<(), ServerError>> + Send {
        async { Ok(()) }
    }

    /// Whether it serves this address. Other servers of the node have their own.
    fn serves(&self, _vip: IpAddr) -> bool {
        true
    }

    /// The connections whose end clients do not see when it stops, since its addresses are removed
    /// first.
    fn connections(&self) -> Vec<Connection> {
        Vec::new()
    }

    /// nfsdcld's database, if it has one.
    fn nfs4_records(&self) -> Option<PathBuf>;

    /// statd's directories of monitored clients.
    fn monitored(&self) -> Vec<PathBuf>;
}
