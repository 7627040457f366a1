//! nfsdcld, which keeps the names of NFSv4 clients over a restart of the server.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{mounts, processes};

/// Where it keeps its database unless nfs.conf says otherwise.
const DATABASES: [&str; 2] = ["/var/lib/nfs/nfsdcld", "/var/lib/nfs/cld"];
const DATABASE: &str = "main.sqlite";

/// Whether an nfsdcld of this network namespace watches nfsd's pipe. nfsd asks it once, when it
/// starts, and goes on without the names if nobody answers within 1.2 seconds
/// (`nfsd4_init_cld_pipe`, fs/nfsd/nfs4recover.c, 6.1 to 7.3).
pub fn listens() -> io::Result<bool> {
    let ours = fs::read_link("/proc/self/ns/net")?;
    // It opens the pipe when inotify tells that nfsd has made it.
    Ok(processes::all()?.any(|(id, folder)| {
        processes::name(&folder) == "nfsdcld"
            && fs::read_link(folder.join("ns/net")).is_ok_and(|net| net == ours)
            && processes::watches_files(id)
    }))
}

/// The directory of its pipe: where rpc_pipefs is mounted last.
pub fn pipes() -> Option<PathBuf> {
    let mounts = mounts::mounts().ok()?;
    let mut pipes = mounts.into_iter().rev();
    let found = pipes.find(|mount| mount.filesystem == "rpc_pipefs")?;
    Some(found.mount_point)
}

/// Its database of clients, where it usually is.
pub fn database() -> Option<PathBuf> {
    let mut paths = DATABASES
        .iter()
        .map(|folder| Path::new(folder).join(DATABASE));
    paths.find(|path| path.is_file())
}

/// Which of the names, or beginnings of names, are nowhere in the database: nfsd will let these
/// clients reclaim nothing. One that is found may be of an earlier time.
///
/// # Errors
/// If the database cannot be read.
pub fn unknown<'a>(database: &Path, names: &[&'a [u8]]) -> io::Result<Vec<&'a [u8]>> {
    let mut content = fs::read(database)?;
    // What is not in the database yet.
    for ending in ["-wal", "-journal"] {
        let mut path = database.as_os_str().to_owned();
        path.push(ending);
        content.extend(fs::read(path).unwrap_or_default());
    }
    let is_there = |name: &[u8]| content.windows(name.len().max(1)).any(|some| some == name);
    Ok((names.iter().copied())
        .filter(|name| !is_there(name))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_not_in_the_database_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE);
        fs::write(&path, b"SQLite\0Linux NFSv4.1 c1\0").unwrap();
        fs::write(folder.path().join("main.sqlite-wal"), b"Linux NFSv4.2 c2").unwrap();
        let names: [&[u8]; 3] = [
            b"Linux NFSv4.1 c1",
            b"Linux NFSv4.2 c2",
            b"Linux NFSv4.1 c3",
        ];
        assert_eq!(unknown(&path, &names).unwrap(), [names[2]]);
        unknown(&folder.path().join("none"), &names).unwrap_err();
    }

    #[test]
    fn no_process_of_this_test_is_nfsdcld() {
        assert!(!listens().unwrap());
    }
}
