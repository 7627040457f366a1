//! nfsdcld, which keeps the names of NFSv4 clients over a restart of the server.

use std::fs;
use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, TransactionBehavior};
use serde::{Deserialize, Serialize};

use super::{mounts, processes};
use crate::foreign::Name;

/// Where it keeps its database unless nfs.conf says otherwise.
const DATABASES: [&str; 2] = ["/var/lib/nfs/nfsdcld", "/var/lib/nfs/cld"];
const DATABASE: &str = "main.sqlite";

/// Whether an nfsdcld of this network namespace watches nfsd's pipe. nfsd asks it once, when it starts,
/// and continues without the names if it gets no answer within 1.2 seconds (`nfsd4_init_cld_pipe`,
/// fs/nfsd/nfs4recover.c, 6.1 to 7.3).
pub fn listens() -> io::Result<bool> {
    let ours = fs::read_link("/proc/self/ns/net")?;
    // It opens the pipe when inotify reports that nfsd has created it.
    Ok(processes::all()?.any(|(id, folder)| {
        processes::name(&folder) == "nfsdcld"
            && fs::read_link(folder.join("ns/net")).is_ok_and(|net| net == ours)
            && processes::watches_files(id)
    }))
}

/// Whether an nfsdcld of this network namespace has this database open. An nfsdcld that was started
/// before the storage was mounted has another database open.
pub fn uses(database: &Path) -> io::Result<bool> {
    let ours = fs::read_link("/proc/self/ns/net")?;
    let wanted = fs::metadata(database)?;
    Ok(processes::all()?.any(|(_, folder)| {
        processes::name(&folder) == "nfsdcld"
            && fs::read_link(folder.join("ns/net")).is_ok_and(|net| net == ours)
            && processes::has_file_open(&folder, &wanted)
    }))
}

/// The directory of its pipe: where `rpc_pipefs` is mounted last.
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

/// How long to wait for nfsdcld, which locks its database for moments.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The layouts of the database that have the tables `grace` and `rec-…` (utils/nfsdcld/sqlite.c,
/// nfs-utils 2.4 to 2.8).
const VERSIONS: RangeInclusive<u32> = 3..=4;

/// Why nfsdcld's records cannot be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    #[error("{}", path.display())]
    Database {
        path: PathBuf,
        source: rusqlite::Error,
    },
    #[error("{}: its layout has version {version}, which nlmfo does not know", path.display())]
    Version { path: PathBuf, version: u32 },
}

/// nfsdcld counts the starts of nfsd (see [`Records`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    pub current: i64,
    /// The epoch that the clients reclaim from while nfsd is in grace; else 0.
    pub recovery: i64,
}

impl Epoch {
    /// The one whose clients may reclaim after the next start.
    fn reclaimed(self) -> i64 {
        match self.recovery {
            0 => self.current,
            recovery => recovery,
        }
    }

    /// Whether no start of nfsd has completed its grace since `self`, which was read at a stop. With
    /// `runs`, the grace of the running server does not count.
    pub fn leads_to(self, now: Epoch, runs: bool) -> bool {
        let next = match self.recovery {
            0 => self.current + 1,
            // A start within grace begins no new epoch.
            _ => self.current,
        };
        let is_over = Epoch {
            current: next,
            recovery: 0,
        };
        now.reclaimed() == self.reclaimed() || (runs && now == is_over)
    }
}

/// The clients that nfsd lets reclaim after its next start.
///
/// nfsdcld stores each client in the table of the current epoch, and keeps the table of the epoch
/// before until grace has ended. A start of nfsd begins a new epoch and reads the table of the
/// last one; a start within grace reads the table that this grace is for, again.
#[derive(Debug)]
pub struct Records {
    path: PathBuf,
    database: Connection,
    epoch: Epoch,
    table: String,
}

impl Records {
    /// # Errors
    /// If the database cannot be opened for writing, or has another layout.
    pub fn open(path: &Path) -> Result<Self, RecordsError> {
        let failed = failed(path);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let database = Connection::open_with_flags(path, flags).map_err(&failed)?;
        database.busy_timeout(BUSY_TIMEOUT).map_err(&failed)?;
        let version = "SELECT CAST(value AS INTEGER) FROM parameters WHERE key = 'version'";
        let version = database.query_row(version, (), |row| row.get(0));
        let version = version.map_err(&failed)?;
        if !VERSIONS.contains(&version) {
            let path = path.to_owned();
            return Err(RecordsError::Version { path, version });
        }
        let epoch = "SELECT CAST(current AS INTEGER), CAST(recovery AS INTEGER) FROM grace";
        let epoch = database.query_row(epoch, (), |row| {
            Ok(Epoch {
                current: row.get(0)?,
                recovery: row.get(1)?,
            })
        });
        let epoch = epoch.map_err(&failed)?;
        Ok(Records {
            path: path.to_owned(),
            database,
            epoch,
            table: format!("\"rec-{:016x}\"", epoch.reclaimed()),
        })
    }

    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Whether it has a client of this name, or one whose name begins so if only the beginning is
    /// known.
    ///
    /// # Errors
    /// If the database cannot be read.
    pub fn has(&self, name: &Name) -> Result<bool, RecordsError> {
        let bytes = name.as_bytes();
        let id = match name.is_cut() {
            true => format!("substr(id, 1, {})", bytes.len()),
            false => "id".to_owned(),
        };
        let query = format!(
            "SELECT EXISTS (SELECT 1 FROM {} WHERE {id} = ?)",
            self.table
        );
        (self.database)
            .query_row(&query, [bytes], |row| row.get(0))
            .map_err(failed(&self.path))
    }

    /// Adds these clients, all or none.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn add(&mut self, names: &[Name]) -> Result<(), RecordsError> {
        let insert = format!("INSERT OR IGNORE INTO {} (id) VALUES (?)", self.table);
        self.change(&insert, names)
    }

    /// Removes these clients, all or none.
    ///
    /// # Errors
    /// If the database cannot be written.
    pub fn remove(&mut self, names: &[Name]) -> Result<(), RecordsError> {
        let delete = format!("DELETE FROM {} WHERE id = ?", self.table);
        self.change(&delete, names)
    }

    fn change(&mut self, statement: &str, names: &[Name]) -> Result<(), RecordsError> {
        let failed = failed(&self.path);
        let kind = TransactionBehavior::Immediate;
        let all = (self.database.transaction_with_behavior(kind)).map_err(&failed)?;
        for name in names {
            all.execute(statement, [name.as_bytes()]).map_err(&failed)?;
        }
        all.commit().map_err(&failed)
    }
}

fn failed(path: &Path) -> impl Fn(rusqlite::Error) -> RecordsError {
    |source| RecordsError::Database {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "Linux NFSv4.1 of the last epoch";
    const NEW: &str = "Linux NFSv4.1 of this epoch";

    /// What nfsdcld writes, with one client in either epoch.
    fn database(path: &Path, recovery: u32, version: u32) {
        let database = Connection::open(path).unwrap();
        let text = format!(
            "CREATE TABLE parameters (key TEXT PRIMARY KEY, value TEXT);
             INSERT INTO parameters VALUES ('version', '{version}');
             CREATE TABLE grace (current INTEGER, recovery INTEGER);
             INSERT INTO grace VALUES (18, '{recovery}');
             CREATE TABLE \"rec-0000000000000011\" (id BLOB PRIMARY KEY, princhash BLOB);
             CREATE TABLE \"rec-0000000000000012\" (id BLOB PRIMARY KEY, princhash BLOB);"
        );
        database.execute_batch(&text).unwrap();
        for (table, name) in [("11", OLD), ("12", NEW)] {
            let insert = format!("INSERT INTO \"rec-00000000000000{table}\" (id) VALUES (?)");
            database.execute(&insert, [name.as_bytes()]).unwrap();
        }
    }

    #[test]
    fn the_next_start_reads_the_last_epoch_and_within_grace_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        for (recovery, has) in [(0, NEW), (17, OLD)] {
            let path = folder.path().join(recovery.to_string());
            database(&path, recovery, 4);
            let records = Records::open(&path).unwrap();
            for name in [OLD, NEW] {
                assert_eq!(records.has(&Name::from(name)).unwrap(), name == has);
            }
            let beginning = &has.as_bytes()[..20];
            assert!(records.has(&Name::cut(beginning)).unwrap());
            assert!(!records.has(&Name::from(beginning)).unwrap());
        }
    }

    #[test]
    fn a_whole_grace_makes_records_old() {
        let epoch = |current, recovery| Epoch { current, recovery };
        for (stop, now, runs, expected) in [
            // Not started since.
            (epoch(5, 0), epoch(5, 0), false, true),
            // In the grace of the next start, which may have been stopped again.
            (epoch(5, 0), epoch(6, 5), true, true),
            (epoch(5, 0), epoch(6, 5), false, true),
            // That grace is over.
            (epoch(5, 0), epoch(6, 0), true, true),
            (epoch(5, 0), epoch(6, 0), false, false),
            (epoch(5, 0), epoch(7, 6), true, false),
            (epoch(5, 0), epoch(7, 0), true, false),
            (epoch(5, 0), epoch(1, 0), false, false),
            // The stop was in grace.
            (epoch(5, 4), epoch(5, 4), true, true),
            (epoch(5, 4), epoch(5, 0), true, true),
            (epoch(5, 4), epoch(5, 0), false, false),
            (epoch(5, 4), epoch(6, 5), true, false),
        ] {
            assert_eq!(
                stop.leads_to(now, runs),
                expected,
                "{stop:?} {now:?} {runs}"
            );
        }
    }

    #[test]
    fn clients_are_added_once_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE);
        database(&path, 0, 4);
        let names = ["Linux NFSv4.0 c1/10.77.0.1", NEW].map(Name::from);
        let mut records = Records::open(&path).unwrap();
        records.add(&names).unwrap();
        records.add(&names).unwrap();
        // As another process sees it.
        let mut other = Records::open(&path).unwrap();
        assert!(names.iter().all(|name| other.has(name).unwrap()));
        other.remove(&names[..1]).unwrap();
        assert!(!records.has(&names[0]).unwrap() && records.has(&names[1]).unwrap());
    }

    #[test]
    fn what_is_no_database_of_nfsdcld_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(DATABASE);
        Records::open(&path).unwrap_err();
        assert!(!path.exists(), "it was created");
        fs::write(&path, b"SQLite\0Linux NFSv4.1 c1\0").unwrap();
        let error = Records::open(&path).unwrap_err();
        assert!(error.to_string().ends_with("main.sqlite"), "{error}");
        fs::remove_file(&path).unwrap();
        database(&path, 0, 2);
        let error = Records::open(&path).unwrap_err().to_string();
        assert!(error.contains("version 2"), "{error}");
    }

    #[test]
    fn no_process_of_this_test_is_nfsdcld() {
        assert!(!listens().unwrap());
    }
}
