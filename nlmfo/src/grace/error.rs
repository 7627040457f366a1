//! What can go wrong with the gate, in an operator's words.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;

use crate::causes::chain;
use crate::files::lock::LockError;
use crate::files::run::RunError;
use crate::kernel::bpffs::BpffsError;
use crate::kernel::layout::LayoutError;
use crate::kernel::nfsd::NfsdError;
use crate::observe::programs::ObserveError;
use crate::rpc::local::Unanswered;

#[derive(Debug, thiserror::Error)]
pub enum GraceError {
    #[error(transparent)]
    Layout(#[from] LayoutError),
    #[error(transparent)]
    Bpffs(#[from] BpffsError),
    #[error("cannot tell which network namespace this is (Linux 5.14 and newer can)")]
    Namespace(#[source] io::Error),
    #[error("loading the gate")]
    Load(#[source] Box<EbpfError>),
    #[error("the gate's program {program} was refused by the kernel")]
    Refused {
        program: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("the gate's probe {program} cannot be attached to the kernel function {function}")]
    Attach {
        program: &'static str,
        function: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error(
        "the kernel gave no link for the gate's probe {program}, so that it would end with this \
         process (Linux 5.15 and newer give one)"
    )]
    NoLink { program: &'static str },
    #[error(
        "the guard at lockd's sockets cannot be attached to the root cgroup: {0}; without it \
         what the gate does not see would not be held to grace"
    )]
    Guard(String),
    #[error("the gate's object has no {0}: it was built from another version of nlmfo")]
    Foreign(&'static str),
    #[error("cannot {action} {path}: {cause}")]
    Pin {
        action: &'static str,
        path: PathBuf,
        cause: String,
    },
    #[error("the gate's map {map}")]
    Map {
        map: &'static str,
        #[source]
        source: Box<MapError>,
    },
    #[error(
        "the gate cannot be put on the network device {device}: {cause}; while a window is open, \
         what comes in there would not be held to it"
    )]
    Cover { device: String, cause: String },
    #[error("cannot {what}: {cause}")]
    Netlink { what: String, cause: String },
    #[error(transparent)]
    Ports(#[from] ObserveError),
    #[error(
        "lockd listens on no port in this network namespace, so that there is nothing to hold a \
         grace period on: start the NFS server (`systemctl start nfs-server`)"
    )]
    NotListening,
    #[error(transparent)]
    Lockd(#[from] Unanswered),
    #[error(transparent)]
    Nfsd(#[from] NfsdError),
    #[error(
        "the grace period of {0:?} was over before it was in force: give it more time, or see what \
         lockd is waiting for"
    )]
    EndedEarly(Duration),
    #[error("{path}")]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("the file handle of {0} is not one of those that knfsd makes of a filesystem's id")]
    Handle(PathBuf),
}

impl GraceError {
    /// Whether the kernel or the node lacks something, as against a failure that
    /// may be gone the next time.
    pub fn is_lack(&self) -> bool {
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
        ) || matches!(self, GraceError::Ports(error) if error.is_lack())
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
