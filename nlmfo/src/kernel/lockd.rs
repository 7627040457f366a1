//! lockd's files: whether it is loaded, and its grace period.

use std::io;
use std::path::{Path, PathBuf};

use super::nfsd::read_control;

const END_GRACE: &str = "/proc/fs/lockd/nlm_end_grace";
/// Created with the module; its inode number is never reused.
const MODULE: &str = "/sys/module/lockd";

/// Why lockd cannot be asked.
#[derive(Debug, thiserror::Error)]
pub enum LockdError {
    #[error("lockd is not loaded: {END_GRACE} does not exist (`modprobe lockd`, or start nfsd)")]
    NotLoaded,
    #[error("cannot {action} {path}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// Whether lockd is loaded, as a module or built in.
pub fn is_loaded() -> bool {
    Path::new(END_GRACE).exists()
}

/// Identifies the loaded lockd: the number changes when lockd is reloaded, and its functions and
/// lists are at other addresses. None if it is not loaded.
pub fn incarnation() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    // Does not exist for a lockd that is built in and has no parameters.
    let module = std::fs::metadata(MODULE).map_or(0, |folder| folder.ino());
    is_loaded().then_some(module)
}

/// Whether lockd of this network namespace is in its grace period. nfsd has a grace period of its
/// own, which denies locks too.
pub fn in_grace() -> Result<bool, LockdError> {
    Ok(read(END_GRACE)? == "N")
}

/// Ends lockd's grace period in this network namespace.
pub fn end_grace() -> Result<(), LockdError> {
    std::fs::write(END_GRACE, "Y").map_err(|source| error("write to", END_GRACE, source))
}

/// What lockd's thread waits for, by its kernel stack: the thread serves every network namespace. None
/// if the stack cannot be read, as in a container, or if the thread waits for calls.
pub fn blocked_on() -> Option<String> {
    let thread = thread()?;
    let read = |file: &str| std::fs::read_to_string(thread.join(file)).unwrap_or_default();
    waits_for(&read("stack"), &read("wchan"))
}

/// The kernel thread's directory: kernel threads have no command line.
fn thread() -> Option<PathBuf> {
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let mut folders = processes.map(|process| process.path());
    folders.find(|folder| {
        let is = |file: &str, text: &str| {
            std::fs::read_to_string(folder.join(file)).is_ok_and(|read| read == text)
        };
        is("comm", "lockd\n") && is("cmdline", "")
    })
}

/// `stack` has a function a line, the innermost first; `wchan` that one alone.
fn waits_for(stack: &str, wchan: &str) -> Option<String> {
    let frames = stack.lines().filter_map(|line| {
        let (_, function) = line.split_once("] ")?;
        function.split('+').next()
    });
    let frames: Vec<&str> = frames.collect();
    if let Some(asks) = frames.iter().find(|frame| frame.starts_with("nsm_")) {
        return Some(format!("rpc.statd ({asks})"));
    }
    if let Some(asks) = frames.iter().find(|frame| frame.starts_with("rpcb_")) {
        return Some(format!("rpcbind ({asks})"));
    }
    let idle =
        |function: &&str| function.starts_with("svc_recv") || *function == "svc_get_next_xprt";
    if frames.iter().any(idle) || idle(&wchan) {
        return None;
    }
    let innermost = frames.first().copied().unwrap_or(wchan);
    let known = !innermost.is_empty() && innermost != "0";
    known.then(|| format!("another kernel function ({innermost})"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocked_lockd_is_named_with_what_it_waits_for() {
        // Of 6.12, with statd stopped.
        let statd = "[<0>] rpc_wait_bit_killable+0x11/0x70 [sunrpc]\n\
                     [<0>] nsm_mon_unmon+0xb8/0x110 [lockd]\n\
                     [<0>] nsm_monitor+0x9e/0x150 [lockd]\n";
        assert_eq!(
            waits_for(statd, "rpc_wait_bit_killable").as_deref(),
            Some("rpc.statd (nsm_mon_unmon)")
        );
        let idle = "[<0>] svc_recv+0x1d5/0x9b0 [sunrpc]\n[<0>] lockd+0x9e/0x150 [lockd]\n";
        assert_eq!(waits_for(idle, "svc_recv"), None);
        let other = "[<0>] io_schedule+0x46/0x70\n[<0>] vfs_lock_file+0x1/0x2\n";
        assert_eq!(
            waits_for(other, "io_schedule").as_deref(),
            Some("another kernel function (io_schedule)")
        );
        assert_eq!(waits_for("", "0"), None);
    }
}
