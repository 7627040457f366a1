//! lockd's own files: whether it is there, and its grace period.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::nfsd::read_control;

const END_GRACE: &str = "/proc/fs/lockd/nlm_end_grace";
/// Made with the module; its inode number is not used again.
const MODULE: &str = "/sys/module/lockd";
const GRACE_PERIOD: &str = "/proc/sys/fs/nfs/nlm_grace_period";
const TCP_PORT: &str = "/proc/sys/fs/nfs/nlm_tcpport";

/// What lockd does when the `nlm_grace_period` sysctl is 0: `LOCKD_DFLT_TIMEO`
/// times 5 in fs/lockd/svc.c, 6.1 to 7.3.
const DEFAULT_GRACE: Duration = Duration::from_secs(50);

#[derive(Debug, thiserror::Error)]
pub enum LockdError {
    #[error("lockd is not loaded: {END_GRACE} is not there (`modprobe lockd`, or start nfsd)")]
    NotLoaded,
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Whether lockd is in the kernel, as a module or built in.
pub fn is_loaded() -> bool {
    Path::new(END_GRACE).exists()
}

/// Which loading of lockd is in the kernel: another number after it was unloaded and
/// loaded again, when its functions and lists are elsewhere. None where it is not there.
pub fn incarnation() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    // Not there for a lockd that is built in and has no parameters.
    let module = std::fs::metadata(MODULE).map_or(0, |folder| folder.ino());
    is_loaded().then_some(module)
}

/// Whether lockd of this network namespace is in its grace period. nfsd may be
/// in its own one all the same, and that denies locks too.
pub fn in_grace() -> Result<bool, LockdError> {
    Ok(read(END_GRACE)? == "N")
}

/// Ends lockd's grace period in this network namespace.
pub fn end_grace() -> Result<(), LockdError> {
    std::fs::write(END_GRACE, "Y\n").map_err(|source| error("write to", END_GRACE, source))
}

/// How long lockd's grace period lasts when it starts.
pub fn grace_period() -> Result<Duration, LockdError> {
    let seconds = read(GRACE_PERIOD)?.parse().unwrap_or(0);
    Ok(match seconds {
        0 => DEFAULT_GRACE,
        _ => Duration::from_secs(seconds),
    })
}

/// The TCP port that lockd was told to listen on; `None` when portmap chooses.
pub fn configured_tcp_port() -> Result<Option<u16>, LockdError> {
    Ok(read(TCP_PORT)?.parse().ok().filter(|&port| port != 0))
}

fn read(path: &'static str) -> Result<String, LockdError> {
    read_control(Path::new(path)).map_err(|source| error("read", path, source))
}

fn error(action: &'static str, path: &'static str, source: io::Error) -> LockdError {
    match source.kind() {
        io::ErrorKind::NotFound => LockdError::NotLoaded,
        _ => LockdError::Io {
            action,
            path: path.into(),
            source,
        },
    }
}
