//! nfsd's NFSv4 clients, `/proc/fs/nfsd/clients`, of the server that the mounted
//! filesystem shows: that of the network namespace in which it was mounted.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::nfsd::{Nfsd, NfsdError};

/// Where the clients are.
pub const PATH: &str = "/proc/fs/nfsd/clients";
const FILESYSTEMS: &str = "/proc/filesystems";

/// The directory with one directory for each client, even for a client without state.
#[derive(Debug)]
pub struct Clients {
    path: PathBuf,
    folder: File,
}

impl Clients {
    /// None if nfsd is not in the kernel, which then has no NFSv4 clients.
    pub fn open() -> Result<Option<Self>, NfsdError> {
        let read = |path: &Path, source| NfsdError::Read {
            path: path.to_owned(),
            source,
        };
        let filesystems = fs::read_to_string(FILESYSTEMS)
            .map_err(|source| read(Path::new(FILESYSTEMS), source))?;
        if !filesystems
            .split_ascii_whitespace()
            .any(|name| name == "nfsd")
        {
            return Ok(None);
        }
        Nfsd::mounted()?;
        let path = PathBuf::from(PATH);
        match File::open(&path) {
            Ok(folder) => Ok(Some(Clients { path, folder })),
            // Before 5.3.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(NfsdError::Absent(path)),
            Err(source) => Err(read(&path, source)),
        }
    }

    /// The open directory, which identifies the server.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Where one client's files are.
    pub fn path(&self, number: u64) -> PathBuf {
        self.path.join(number.to_string())
    }

    /// The clients' numbers. nfsd counts them up; a client that comes back has a new one.
    pub fn numbers(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            numbers.push(number.ok_or_else(|| {
                let text = format!("{} is not a client's number", name.display());
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?);
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// What nfsd says of a client; none if it is gone.
    pub fn info(&self, number: u64) -> io::Result<Option<Vec<u8>>> {
        unless_gone(fs::read(self.path(number).join("info")))
    }

    /// Ends a client with all that it holds (`force_expire_client`, fs/nfsd/nfs4state.c); false
    /// if it is gone already. nfsd takes this word alone, in one write.
    pub fn expire(&self, number: u64) -> io::Result<bool> {
        let ctl = OpenOptions::new()
            .write(true)
            .open(self.path(number).join("ctl"));
        let Some(mut ctl) = unless_gone(ctl)? else {
            return Ok(false);
        };
        Ok(unless_gone(ctl.write_all(b"expire\n"))?.is_some())
    }

    /// A client's states; none if it is gone.
    pub fn states(&self, number: u64) -> io::Result<Option<File>> {
        unless_gone(File::open(self.path(number).join("states")))
    }
}

/// nfsd answers ENXIO in the moment between a client's end and its directory's.
fn unless_gone<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(there) => Ok(Some(there)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        Err(error) => Err(error),
    }
}
