//! The path that the operator named for an output file.

use std::fs::{self, Metadata};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::temporary::written_beside;
use super::{FileError, PRIVATE, ensure_regular, folder_of, open, sync_folder};

/// A place where a file can be put: nothing is there, or an earlier file of the same kind.
/// [`Place::look`] changes nothing. Call it before the first change that the file is to record.
#[derive(Clone, Debug)]
pub struct Place<T> {
    path: PathBuf,
    earlier: Option<Earlier<T>>,
}

#[derive(Clone, Debug)]
struct Earlier<T> {
    content: T,
    /// Device and inode.
    file: (u64, u64),
}

impl<T> Place<T> {
    /// Looks at the place. Whatever is there must be a regular file that `parse` takes;
    /// `wanted` is what such a file is called, with its article.
    ///
    /// # Errors
    /// If something else is there, a symbolic link too, or a file cannot be created there.
    pub fn look<E>(
        path: &Path,
        wanted: &'static str,
        parse: impl FnOnce(fs::File) -> Result<T, E>,
    ) -> Result<Self, FileError>
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if path.file_name().is_none() || path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(FileError::NotRegular {
                path: path.to_owned(),
                kind: "the name of a directory",
            });
        }
        let earlier = match found(path)? {
            None => None,
            Some(metadata) => {
                let content = parse(open(path)?).map_err(|error| FileError::NotOurs {
                    path: path.to_owned(),
                    wanted,
                    source: error.into(),
                })?;
                Some(Earlier {
                    content,
                    file: identity(&metadata),
                })
            }
        };
        // Without a name where the filesystem can, so that nothing stays if we are killed.
        tempfile::tempfile_in(folder_of(path)).map_err(FileError::io("writing", path))?;
        Ok(Place {
            path: path.to_owned(),
            earlier,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is there.
    pub fn earlier(&self) -> Option<&T> {
        self.earlier.as_ref().map(|earlier| &earlier.content)
    }

    /// Puts a complete file there; the file, open for writing behind what it has.
    ///
    /// # Errors
    /// If something else is there than was when it was looked at. Then that stays.
    pub fn put(&self, content: &[u8]) -> Result<fs::File, FileError> {
        let failed = || FileError::io("writing", &self.path);
        let temporary = written_beside(&self.path, content, PRIVATE).map_err(failed())?;
        let earlier = self.earlier.as_ref().map(|earlier| earlier.file);
        let now = found(&self.path)?.as_ref().map(identity);
        let changed = || FileError::Changed {
            path: self.path.clone(),
        };
        let put = match now {
            _ if now != earlier => return Err(changed()),
            Some(_) => temporary.persist(&self.path),
            None => temporary.persist_noclobber(&self.path),
        };
        let file = put.map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => changed(),
            _ => failed()(error.error),
        })?;
        sync_folder(folder_of(&self.path)).map_err(failed())?;
        Ok(file)
    }
}

/// The regular file that has this name; none if nothing has it.
fn found(path: &Path) -> Result<Option<Metadata>, FileError> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => ensure_regular(path, &metadata).map(|()| Some(metadata)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::io("reading", path)(error)),
    }
}

fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A file of ours is a number.
    fn look(path: &Path) -> Result<Place<u32>, FileError> {
        Place::look(path, "a number", |file| {
            let text = io::read_to_string(file).map_err(|error| error.to_string())?;
            text.parse::<u32>().map_err(|error| error.to_string())
        })
    }

    #[test]
    fn a_new_file_and_one_of_ours_are_put() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let place = look(&path).unwrap();
        assert_eq!(place.earlier(), None);
        place.put(b"1").unwrap();
        let again = look(&path).unwrap();
        assert_eq!(again.earlier(), Some(&1));
        again.put(b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn everything_else_is_refused_and_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("text"), "other people's").unwrap();
        fs::write(path("empty"), "").unwrap();
        fs::write(path("ours"), "1").unwrap();
        symlink(path("ours"), path("link")).unwrap();
        symlink(path("nowhere"), path("dangling")).unwrap();
        fs::create_dir(path("folder")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), 0o600.into()).unwrap();
        let before = fs::read_dir(folder.path()).unwrap().count();
        for name in [
            "text",
            "empty",
            "link",
            "dangling",
            "folder",
            "fifo",
            "",
            "new/",
            "no/folder",
        ] {
            let error = look(&path(name)).unwrap_err().to_string();
            let named = folder.path().display().to_string();
            assert!(error.contains(&named), "{name}: {error}");
        }
        for other in ["/dev/null", "/proc/self/status", "", "..", "/proc/new"] {
            look(Path::new(other)).unwrap_err();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), before);
        assert_eq!(fs::read(path("text")).unwrap(), b"other people's");
    }

    #[test]
    fn what_has_come_meanwhile_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let place = look(&path).unwrap();
        fs::write(&path, "1").unwrap();
        assert!(matches!(place.put(b"2"), Err(FileError::Changed { .. })));
        let place = look(&path).unwrap();
        fs::rename(&path, folder.path().join("moved")).unwrap();
        fs::write(&path, "3").unwrap();
        assert!(matches!(place.put(b"2"), Err(FileError::Changed { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"3");
    }
}
