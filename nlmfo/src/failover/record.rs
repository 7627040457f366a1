//! The record for the node that takes over: a VIP's clients and locks as they
//! were before the release. Whole or not there: written beside its place,
//! synced, renamed, and the directory synced.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::Serialize;

use crate::kernel::path::PathFinder;
use crate::observe::describe::{Described, HostLine, LockLine, ShareLine, WaiterLine};
use crate::observe::table::LockTable;

/// Why the record could not be written; nothing is left in its place.
#[derive(Debug, thiserror::Error)]
#[error("writing the record {}: {source}", path.display())]
pub struct RecordError {
    path: PathBuf,
    source: io::Error,
}

/// A client of a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ClientLine {
    #[serde(flatten)]
    pub host: HostLine,
    /// The name that statd monitors; empty if the client is not monitored.
    pub nsm_name: String,
}

/// What the file holds: one JSON object, `schema` "nlmfo.record/1". Addresses as
/// text, ranges in bytes with both ends included and a null `end` for the end of
/// the file, file handles in hexadecimal.
#[derive(Debug, Serialize)]
pub struct Record {
    pub schema: &'static str,
    pub node: String,
    pub kernel: String,
    /// When the locks were read, in seconds since 1970.
    pub taken_at: u64,
    pub vips: Vec<IpAddr>,
    pub clients: Vec<ClientLine>,
    pub locks: Vec<LockLine>,
    pub waiters: Vec<WaiterLine>,
    pub shares: Vec<ShareLine>,
}

impl Record {
    pub const SCHEMA: &str = "nlmfo.record/1";

    /// The record of what `tables` hold, one for each of the VIPs.
    pub fn of<'a>(
        tables: impl Iterator<Item = &'a LockTable>,
        paths: &mut PathFinder,
        node: String,
        kernel: String,
        vips: &[IpAddr],
    ) -> Self {
        let mut record = Record {
            schema: Record::SCHEMA,
            node,
            kernel,
            taken_at: now(),
            vips: vips.to_vec(),
            clients: Vec::new(),
            locks: Vec::new(),
            waiters: Vec::new(),
            shares: Vec::new(),
        };
        for table in tables {
            let described = Described::new(table, paths);
            record.locks.extend(described.locks());
            record.waiters.extend(described.waiters());
            record.shares.extend(described.shares());
            for id in table.active_hosts() {
                record.clients.push(ClientLine {
                    host: described.host(id),
                    nsm_name: table.host(id).nsm_name.clone(),
                });
            }
        }
        record
    }

    /// Replaces `path` in one step.
    pub fn write(&self, path: &Path) -> Result<(), RecordError> {
        write_whole(path, |out| {
            serde_json::to_writer_pretty(&mut *out, self)?;
            out.write_all(b"\n")
        })
        .map_err(|source| RecordError {
            path: path.to_owned(),
            source,
        })
    }
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs())
}

fn write_whole(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let temporary = tempfile::Builder::new()
        .prefix(".nlmfo-record-")
        .tempfile_in(folder)?;
    let mut out = BufWriter::new(temporary.as_file());
    fill(&mut out)?;
    out.flush()?;
    drop(out);
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|error| error.error)?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        Record {
            schema: Record::SCHEMA,
            node: "a".to_owned(),
            kernel: "6.1".to_owned(),
            taken_at: 1,
            vips: vec!["10.77.0.1".parse().unwrap()],
            clients: Vec::new(),
            locks: Vec::new(),
            waiters: Vec::new(),
            shares: Vec::new(),
        }
    }

    #[test]
    fn the_record_replaces_an_older_one_and_leaves_nothing_beside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vip.json");
        std::fs::write(&path, "old").unwrap();
        record().write(&path).unwrap();
        let read: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["schema"], "nlmfo.record/1");
        assert_eq!(read["vips"][0], "10.77.0.1");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_record() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vip.json");
        std::fs::write(&path, "old").unwrap();
        let failed = write_whole(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::other("disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_is_named() {
        let error = record()
            .write(Path::new("/nonexistent/vip.json"))
            .unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/vip.json"),
            "{error}"
        );
    }
}
