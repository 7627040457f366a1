//! Why the kernel cannot be observed.

use std::io;

use aya::EbpfError;
use aya::maps::MapError;
use aya::programs::ProgramError;
use nlmfo_common::layout::FL_SPAN_MAX;
use nlmfo_common::record::walk;

use crate::kernel;

/// Why the kernel cannot be observed.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    #[error(transparent)]
    Layout(#[from] kernel::layout::LayoutError),
    #[error(
        "struct file_lock needs {0} bytes on this kernel, but the programs copy only {FL_SPAN_MAX}"
    )]
    FileLockTooLarge(u32),
    #[error("cannot load the eBPF programs")]
    Load(#[source] Box<EbpfError>),
    #[error("the kernel rejected the eBPF program {program}")]
    Refused {
        program: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error(
        "cannot attach the probe {program} to the kernel function {function} (is lockd loaded, and \
         does /proc/kallsyms list the function?)"
    )]
    Attach {
        program: &'static str,
        function: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("the eBPF object has no {0}: it was built from another version of nlmfo")]
    Foreign(&'static str),
    #[error("cannot run the eBPF program {program}")]
    Run {
        program: &'static str,
        #[source]
        source: Box<ProgramError>,
    },
    #[error("cannot use the eBPF map {map}")]
    Map {
        map: &'static str,
        #[source]
        source: Box<MapError>,
    },
    #[error("cannot read lockd's sockets: {0}")]
    LockdSockets(&'static str),
    #[error("cannot wait for records of the eBPF programs")]
    Poll(#[source] io::Error),
    #[error("cannot read /proc/locks")]
    ProcLocks(#[source] io::Error),
    #[error("{lost} records were lost while the locks were read: the snapshot is incomplete")]
    Lost { lost: u64 },
    #[error(
        "{events} of lockd's events were not counted: more than 1024 server addresses, or a client \
         address that is neither IPv4 nor IPv6"
    )]
    Uncounted { events: u64 },
    #[error(
        "{events} NFSv4 events were not counted: more than 1024 server addresses, or one that is \
         neither IPv4 nor IPv6"
    )]
    Uncounted4 { events: u64 },
    #[error(
        "cannot walk bucket {bucket} of lockd's file table: {} on each try",
        torn(*.at)
    )]
    Torn { bucket: u64, at: u64 },
    #[error("bucket {bucket} of lockd's file table has more than eight million entries")]
    TooMany { bucket: u64 },
}

impl ObserveError {
    /// Whether the kernel or the node lacks something, so that another try would fail too.
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            ObserveError::Layout(_)
                | ObserveError::FileLockTooLarge(_)
                | ObserveError::Load(_)
                | ObserveError::Refused { .. }
                | ObserveError::Attach { .. }
                | ObserveError::LockdSockets(_)
        )
    }
}

/// What a walk ran into, by its `record::walk` number.
fn torn(at: u64) -> &'static str {
    match at.checked_sub(walk::FAULT) {
        None => "its list changed",
        Some(0) => "the table could not be read",
        Some(1) => "a file could not be read",
        Some(2) => "the locks of a file could not be read",
        Some(3) => "the waiters of a file could not be read",
        Some(_) => "the shares of a file could not be read",
    }
}
