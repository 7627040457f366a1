//! The record for the node that takes over: a VIP's clients and locks as they
//! were before the release. Whole or not there: written beside its place,
//! synced, renamed, and the directory synced.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::File;
use std::hash::Hash;
use std::io::{self, BufWriter, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::kernel::path::PathFinder;
use crate::observe::describe::{Described, HostLine, LockLine, ShareLine, WaiterLine};
use crate::observe::table::LockTable;

#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Nothing is left in its place.
    #[error("writing the record {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("reading the record {}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the record {} is damaged, or no record: {source}", path.display())]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "the record {} has the schema {schema:?}, and this nlmfo reads {:?}: write it with the \
         same version on both nodes", path.display(), Record::SCHEMA
    )]
    Foreign { path: PathBuf, schema: String },
}

/// A client of a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClientLine {
    #[serde(flatten)]
    pub host: HostLine,
    /// The name that statd monitors; empty if the client is not monitored.
    pub nsm_name: String,
}

/// What the file holds: one JSON object, `schema` "nlmfo.record/1". Addresses as
/// text, ranges in bytes with both ends included and a null `end` for the end of
/// the file, file handles in hexadecimal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub schema: Cow<'static, str>,
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
    /// Which release this is of, among those of all nodes.
    pub fn id(&self) -> String {
        format!("{} at {}", self.node, self.taken_at)
    }

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
            schema: Record::SCHEMA.into(),
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

    /// The monitored clients of one VIP: those that want to be told of a reboot. One that
    /// uses several transports or versions is there as often.
    pub fn clients_of(&self, vip: IpAddr) -> impl Iterator<Item = IpAddr> {
        let clients = self.clients.iter();
        clients
            .filter(move |client| client.host.vip == vip && !client.nsm_name.is_empty())
            .map(|client| client.host.client)
    }

    /// Adds what `earlier` says of a VIP through which nothing can have been granted since
    /// then: an interrupted release has recorded it, and may have released it too.
    pub fn recall(&mut self, earlier: Record, vip: IpAddr) {
        let ours = |host: &HostLine| host.vip == vip;
        add(&mut self.clients, earlier.clients, |c| ours(&c.host));
        add(&mut self.locks, earlier.locks, |lock| ours(&lock.host));
        add(&mut self.waiters, earlier.waiters, |w| ours(&w.lock.host));
        add(&mut self.shares, earlier.shares, |share| ours(&share.host));
    }

    /// Replaces `path` in one step.
    pub fn write(&self, path: &Path) -> Result<(), RecordError> {
        write_whole(path, |out| {
            serde_json::to_writer_pretty(&mut *out, self)?;
            out.write_all(b"\n")
        })
        .map_err(|source| RecordError::Write {
            path: path.to_owned(),
            source,
        })
    }

    /// What [`Record::write`] wrote, on whichever node.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let text = std::fs::read(path).map_err(|source| RecordError::Read {
            path: path.to_owned(),
            source,
        })?;
        let damaged = |source| RecordError::Damaged {
            path: path.to_owned(),
            source,
        };
        #[derive(Deserialize)]
        struct Head {
            schema: String,
        }
        let Head { schema } = serde_json::from_slice(&text).map_err(damaged)?;
        if schema != Record::SCHEMA {
            return Err(RecordError::Foreign {
                path: path.to_owned(),
                schema,
            });
        }
        serde_json::from_slice(&text).map_err(damaged)
    }
}

/// Adds those lines that are not there yet.
fn add<T: Eq + Hash>(lines: &mut Vec<T>, earlier: Vec<T>, is_ours: impl Fn(&T) -> bool) {
    let there: HashSet<&T> = lines.iter().collect();
    let gone: Vec<T> = (earlier.into_iter())
        .filter(|line| is_ours(line) && !there.contains(line))
        .collect();
    lines.extend(gone);
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
            schema: Record::SCHEMA.into(),
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

    /// A lock through this VIP, told from others by its svid.
    fn lock(vip: &str, svid: u32) -> LockLine {
        let line = serde_json::json!({
            "vip": vip, "client": "10.77.1.1", "client_name": "c1", "version": 4,
            "transport": "tcp", "netns": 1, "svid": svid, "mode": "write",
            "range": {"start": 5, "end": null},
            "file": {"dev": "0:28", "ino": 17, "fh": "00", "path": null},
        });
        serde_json::from_value(line).unwrap()
    }

    #[test]
    fn what_an_interrupted_release_recorded_comes_back_once_and_for_its_vip() {
        let (vip, other) = ("10.77.0.1", "10.77.0.2");
        let mut earlier = record();
        earlier.locks = vec![lock(vip, 1), lock(vip, 2), lock(other, 3)];
        let mut now = record();
        now.locks = vec![lock(vip, 2)];
        now.recall(earlier, vip.parse().unwrap());
        assert_eq!(now.locks, [lock(vip, 2), lock(vip, 1)]);
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
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vip.json");
        record().write(&path).unwrap();
        let read = Record::read(&path).unwrap();
        assert_eq!(read.vips, record().vips);
        for (text, word) in [
            (r#"{"schema": "nlmfo.record/9"}"#, "nlmfo.record/9"),
            (r#"{"schema": "nlmfo.record/1"}"#, "damaged"),
            ("", "damaged"),
        ] {
            std::fs::write(&path, text).unwrap();
            let error = Record::read(&path).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
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
