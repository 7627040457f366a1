//! Files that are whole or not there, whatever happens meanwhile.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Creates `path` with this content, durably and in one step; `AlreadyExists` if it is
/// there. Of several nodes that try, one succeeds: a hard link is made or not.
pub fn create_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let folder = folder_of(path);
    let mut temporary = tempfile::Builder::new()
        .prefix(".nlmfo-")
        .permissions(fs::Permissions::from_mode(0o644))
        .tempfile_in(folder)?;
    temporary.write_all(content)?;
    temporary.as_file().sync_all()?;
    fs::hard_link(temporary.path(), path)?;
    drop(temporary);
    sync_folder(folder)
}

/// Makes what was created, renamed or removed in a folder durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_creates_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("one");
        create_new(&path, b"first").unwrap();
        let again = create_new(&path, b"second").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
