//! Whether the filesystem of a directory answers. Where it is frozen, or its server is gone, a call
//! blocks, and the process cannot even be killed in it. So a child asks first.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

const POLL_INTERVAL: Duration = Duration::from_millis(2);

/// Whether the filesystem answers within `max_wait`. Changes the directory for that, or its nearest parent
/// that exists; the change may fail.
///
/// # Errors
/// If no process can be created.
pub fn answers(folder: &Path, max_wait: Duration) -> io::Result<bool> {
    let paths: Vec<CString> = (folder.ancestors())
        .filter_map(|path| CString::new(path.as_os_str().as_bytes()).ok())
        .collect();
    // SAFETY: the child makes only system calls, with memory that is there.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        0 => {
            let _ = paths.iter().any(is_touched);
            // SAFETY: it ends the child.
            unsafe { libc::_exit(0) }
        }
        child => child,
    };
    let until = Instant::now() + max_wait;
    loop {
        // SAFETY: a child of ours that nobody else waits for; no status is wanted.
        match unsafe { libc::waitpid(child, std::ptr::null_mut(), libc::WNOHANG) } {
            0 if Instant::now() < until => sleep(POLL_INTERVAL),
            0 => {
                // Ends when its filesystem answers, if not now.
                // SAFETY: no memory is involved.
                unsafe { libc::kill(child, libc::SIGKILL) };
                return Ok(false);
            }
            _ => return Ok(true),
        }
    }
}

/// Sets the time of the last access, which nobody uses; false if there is no such file. A filesystem
/// that is frozen, or of a server, is asked even if the file is cached.
fn is_touched(path: &CString) -> bool {
    let time = |nanoseconds| libc::timespec {
        tv_sec: 0,
        tv_nsec: nanoseconds,
    };
    let times = [time(libc::UTIME_NOW), time(libc::UTIME_OMIT)];
    // SAFETY: both pointers are to memory that outlives the call.
    let result = unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) };
    // SAFETY: it points to this thread's error number.
    result == 0 || unsafe { *libc::__errno_location() } != libc::ENOENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_answers_also_before_it_exists() {
        let folder = tempfile::tempdir().unwrap();
        let long = Duration::from_mins(1);
        assert!(answers(folder.path(), long).unwrap());
        assert!(answers(&folder.path().join("not/there"), long).unwrap());
        assert!(answers(Path::new("relative"), long).unwrap());
        assert!(answers(Path::new("/none/of/these"), long).unwrap());
    }
}
