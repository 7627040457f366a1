//! Errors of the gate.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use crate::causes::chain;
use crate::files::lock::{Holders, LockError};
use crate::files::run::RunError;
use crate::kernel::bpffs::BpffsError;
use crate::kernel::layout::LayoutError;
use crate::kernel::nfsd::NfsdError;
use crate::observe::error::ObserveError;
use crate::observe::lockd_queue::Unanswered;

/// Why grace could not be started, ended or read.
#[derive(Debug, thiserror::Error)]
pub enum GraceError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    #[error("cannot identify this network namespace (requires Linux 5.14 or newer)")]
    Namespace(#[source] io::Error),
    #[error("cannot load the gate")]
    Load(#[source] Box<EbpfError>),
    #[error("the kernel rejected the gate's program {program}")]
    Refused {
        program: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("cannot attach the gate's probe {program} to the kernel function {function}")]
    Attach {
        program: &'static str,
        function: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error(
        "the gate's probe {program} would end with this process, since the kernel gave no link for \
         it (requires Linux 5.15 or newer)"
    )]
    NoLink { program: &'static str },
    #[error(
        "cannot attach the guard at lockd's sockets to the root cgroup: {0}; without it, packets \
         that the gate does not see would bypass grace"
    )]
    Guard(String),
    #[error("the gate's eBPF object has no {0}: it was built from another version of nlmfo")]
    Foreign(&'static str),
    #[error("cannot {action} {path}: {cause}")]
    Pin {
        action: &'static str,
        path: PathBuf,
        cause: String,
    },
    #[error("cannot use the gate's map {map}")]
    Map {
        map: &'static str,
        #[source]
        source: Box<MapError>,
    },
    #[error(
        "cannot attach the gate to the network device {device}: {cause}; packets that arrive on it \
         would bypass grace"
    )]
    Cover { device: String, cause: String },
    #[error("cannot {what}: {cause}")]
    Netlink { what: String, cause: String },
    #[error(transparent)]
    Ports(#[from] ObserveError),
    #[error(
        "lockd listens on no port in this network namespace: start the NFS server (`systemctl \
         start nfs-server`)"
    )]
    NotListening,
    #[error(transparent)]
    Lockd(#[from] Unanswered),
    #[error(transparent)]
    Nfsd(#[from] NfsdError),
    #[error(
        "the grace period of {0:?} ended before it was in force: use a longer time, or check what \
         lockd is waiting for"
    )]
    EndedEarly(Duration),
    #[error("cannot access {path}")]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error(
        "the gate is removed, but its keeper still runs{who}: end it with `kill`, since it may write \
         to /run/nlmfo"
    )]
    Keeper { who: Holders },
    #[error("the file handle of {0} has no filesystem ID of a known kind")]
    Handle(PathBuf),
}

impl GraceError {
    /// Whether the kernel or the node lacks something, so that another try would fail too.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            GraceError::Layout(_)
                | GraceError::Bpffs(_)
                | GraceError::Namespace(_)
                | GraceError::Load(_)
                | GraceError::Refused { .. }
                | GraceError::Attach { .. }
                | GraceError::NoLink { .. }
                | GraceError::NotListening
                | GraceError::Guard(_)
        ) || matches!(self, GraceError::Ports(error) if error.is_unsupported())
    }

    pub(super) fn pin(
        action: &'static str,
        path: impl Into<PathBuf>,
        cause: &(dyn std::error::Error + 'static),
    ) -> Self {
        GraceError::Pin {
            action,
            path: path.into(),
            cause: chain(cause),
        }
    }

    pub(super) fn map(map: &'static str) -> impl Fn(MapError) -> Self {
        move |source| GraceError::Map {
            map,
            source: Box::new(source),
        }
    }

    pub(super) fn netlink(what: impl Into<String>, cause: impl ToString) -> Self {
        GraceError::Netlink {
            what: what.into(),
            cause: cause.to_string(),
        }
    }
}
