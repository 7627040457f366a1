//! Files on their way to a name. Their own names say which process of which node writes them,
//! so that what a killed process has left is told from what is being written. No file lock
//! does that: where the folder is mounted from another server, it may wait for that one's
//! grace.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use tempfile::NamedTempFile;

use super::folder_of;

/// A temporary file in the folder of `path`, complete and synced. Those that others have
/// abandoned there are removed.
pub(super) fn written_beside(path: &Path, content: &[u8], mode: u32) -> io::Result<NamedTempFile> {
    let folder = folder_of(path);
    remove_abandoned(folder)?;
    let mut temporary = tempfile::Builder::new()
        .prefix(&format!("{}{}-", prefix(), std::process::id()))
        .tempfile_in(folder)?;
    temporary.write_all(content)?;
    let file = temporary.as_file();
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()?;
    Ok(temporary)
}

/// Removes the temporary files in a folder whose process on this node has ended. Returns
/// how many.
pub fn remove_abandoned(folder: &Path) -> io::Result<usize> {
    let prefix = prefix();
    let mut removed = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_abandoned = writer(name.as_bytes(), &prefix).is_some_and(has_ended);
        // It may be gone meanwhile.
        if is_abandoned && entry.file_type()?.is_file() && fs::remove_file(entry.path()).is_ok() {
            removed += 1;
        }
    }
    Ok(removed)
}

/// What the names of this node's files begin with.
fn prefix() -> String {
    let uname = rustix::system::uname();
    format!(".nlmfo-{}-", uname.nodename().to_string_lossy())
}

/// The process that writes a file of this name, if it is one of this node's.
fn writer(name: &[u8], prefix: &str) -> Option<i32> {
    let rest = name.strip_prefix(prefix.as_bytes())?;
    let number = rest.split(|&byte| byte == b'-').next()?;
    let number: i32 = std::str::from_utf8(number).ok()?.parse().ok()?;
    (number > 0).then_some(number)
}

fn has_ended(process: i32) -> bool {
    kill(Pid::from_raw(process), None) == Err(Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_writes_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let written = written_beside(&path, b"new", 0o600).unwrap();
        // No process has the highest number.
        let killed = format!("{}{}-abc", prefix(), i32::MAX);
        for name in [
            &killed,
            ".nlmfo-elsewhere-2147483647-abc",
            ".nlmfo-",
            "other",
        ] {
            fs::write(folder.path().join(name), "half").unwrap();
        }
        assert_eq!(remove_abandoned(folder.path()).unwrap(), 1);
        assert!(!folder.path().join(killed).exists());
        written.persist(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
