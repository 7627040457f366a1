//! `/run/nlmfo`: lock files, stored reports and what was read of the kernel. Only root can open
//! it: a user who can open a lock file can lock it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::FileError;

/// Its content does not survive a reboot.
const FOLDER: &str = "/run/nlmfo";

#[derive(Debug, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(
        "{} is not a directory that only root can open ({found}): remove it", path.display()
    )]
    NotOurs { path: PathBuf, found: String },
}

/// The directory, which may not exist.
pub fn folder() -> &'static Path {
    Path::new(FOLDER)
}

/// The path of a file in the directory; creates the directory if needed.
pub fn file(name: &str) -> Result<PathBuf, RunError> {
    let folder = folder();
    create(folder)?;
    Ok(folder.join(name))
}

fn create(folder: &Path) -> Result<(), RunError> {
    match DirBuilder::new().mode(0o700).create(folder) {
        // Independent of the umask.
        Ok(()) => fs::set_permissions(folder, Permissions::from_mode(0o700)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(FileError::io("creating", folder))?;
    let found = fs::symlink_metadata(folder).map_err(FileError::io("reading", folder))?;
    let (is_folder, owner, mode) = (found.is_dir(), found.uid(), found.mode() & 0o7777);
    // Only root gets here; tests use their own directories.
    let us = rustix::process::geteuid().as_raw();
    if is_folder && owner == us && mode == 0o700 {
        return Ok(());
    }
    let found = match is_folder {
        true => format!("owner {owner}, mode {mode:o}"),
        false => "not a directory".to_owned(),
    };
    Err(RunError::NotOurs {
        path: folder.to_owned(),
        found,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_private_folder_is_taken() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("ours");
        create(&folder).unwrap();
        assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o7777, 0o700);
        create(&folder).unwrap();
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(matches!(create(&link), Err(RunError::NotOurs { .. })));
        let file = parent.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(matches!(create(&file), Err(RunError::NotOurs { .. })));
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        let error = create(&folder).unwrap_err().to_string();
        assert!(error.contains("755"), "{error}");
    }
}
