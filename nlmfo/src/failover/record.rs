//! The release record, for the node that takes over: the clients and locks of VIPs before
//! the release.

use std::borrow::Cow;
use std::collections::HashSet;
use std::hash::Hash;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::files::{self, FileError, LIMIT, Place};
use crate::foreign::{self, Name};
use crate::kernel::connections::Connection;
use crate::kernel::nfsdcld::Epoch;
use crate::kernel::path::PathFinder;
use crate::observe::describe::{Described, HostLine, LockLine, ShareLine, WaiterLine};
use crate::observe::states::describe::StateLine;
use crate::observe::table::LockTable;
use crate::rpc::nfs4::Identity;
use crate::times;

/// Why a release record cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is damaged, or not a release record", path.display())]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error(
        "the release record {} has the schema {schema:?}, but this nlmfo reads {:?}: use the \
         same nlmfo version on both nodes", path.display(), Record::SCHEMA
    )]
    Foreign { path: PathBuf, schema: String },
}

/// A client of a VIP.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClientLine {
    #[serde(flatten)]
    pub host: Arc<HostLine>,
    /// The name that statd monitors; empty if the client is not monitored.
    pub nsm_name: Name,
}

/// The content of the file: one JSON object, `schema` "nlmfo.record/1". Addresses are text,
/// ranges are in bytes with both ends included and a null `end` for the end of the file,
/// file handles are hexadecimal.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    pub schema: Cow<'static, str>,
    #[serde(deserialize_with = "foreign::text")]
    pub node: String,
    #[serde(deserialize_with = "foreign::text")]
    pub kernel: String,
    /// When the locks were read, in seconds since 1970.
    pub taken_at: u64,
    pub vips: Vec<IpAddr>,
    pub clients: Vec<ClientLine>,
    pub locks: Vec<LockLine>,
    pub waiters: Vec<WaiterLine>,
    pub shares: Vec<ShareLine>,
    /// What NFSv4 clients held through the VIPs, or may have held: `vips` of each line
    /// names the VIPs. A lock may come back as a delegation that covers it.
    #[serde(default)]
    pub nfs4: Vec<StateLine>,
    /// Locks changed after they were read: more may come back than is recorded.
    #[serde(default)]
    pub changing: bool,
    /// TCP connections through the VIPs. Clients do not see them end.
    #[serde(default)]
    pub connections: Vec<Connection>,
    /// If a whole server was stopped: the identity that its NFSv4 clients know.
    #[serde(default)]
    pub identity: Option<Identity>,
    /// If a whole server was stopped: how often nfsd had started, by nfsdcld's count.
    #[serde(default)]
    pub epoch: Option<Epoch>,
}

impl Record {
    /// Identifies the release among those of all nodes.
    pub fn id(&self) -> String {
        format!("{} at {}", self.node, self.taken_at)
    }

    pub const SCHEMA: &str = "nlmfo.record/1";

    /// The record of `tables`, one per VIP.
    pub fn of<'a>(
        tables: impl Iterator<Item = &'a LockTable>,
        paths: &mut PathFinder,
        node: String,
        kernel: String,
        vips: &[IpAddr],
    ) -> Self {
        let mut record = Record {
            node,
            kernel,
            ..Record::of_clients(vips.to_vec(), Vec::new())
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

    /// A record of clients of which nothing else is known. Its node has no name.
    pub fn of_clients(vips: Vec<IpAddr>, clients: Vec<ClientLine>) -> Self {
        Record {
            schema: Record::SCHEMA.into(),
            node: String::new(),
            kernel: String::new(),
            taken_at: times::now(),
            vips,
            clients,
            locks: Vec::new(),
            waiters: Vec::new(),
            shares: Vec::new(),
            nfs4: Vec::new(),
            changing: false,
            connections: Vec::new(),
            identity: None,
            epoch: None,
        }
    }

    /// Adds what NFSv4 clients hold, each state once.
    pub fn add_nfs4(&mut self, lines: impl IntoIterator<Item = StateLine>) {
        let key = |line: &StateLine| (line.client.client_id.clone(), line.stateid.clone());
        let mut there: HashSet<_> = self.nfs4.iter().map(key).collect();
        (self.nfs4).extend(lines.into_iter().filter(|line| there.insert(key(line))));
    }

    /// The monitored clients of one VIP, which expect SM_NOTIFY. A client with several
    /// transports or versions appears once for each.
    pub fn clients_of(&self, vip: IpAddr) -> impl Iterator<Item = IpAddr> {
        let clients = self.clients.iter();
        clients
            .filter(move |client| client.host.vip == vip && !client.nsm_name.is_empty())
            .map(|client| client.host.client)
    }

    /// Adds what `earlier` says of a VIP through which nothing can have been granted since.
    /// An interrupted release recorded it, and may have released it too.
    pub fn recall(&mut self, earlier: &Record, vip: IpAddr) {
        let ours = |host: &HostLine| host.vip == vip;
        add(&mut self.clients, &earlier.clients, |c| ours(&c.host));
        add(&mut self.locks, &earlier.locks, |lock| ours(&lock.host));
        add(&mut self.waiters, &earlier.waiters, |w| ours(&w.lock.host));
        add(&mut self.shares, &earlier.shares, |share| ours(&share.host));
        add(&mut self.connections, &earlier.connections, |one| {
            one.vip == vip
        });
        let states = earlier.nfs4.iter();
        self.add_nfs4(states.filter(|s| s.client.vips.contains(&vip)).cloned());
    }

    /// Adds everything that `earlier` says of VIPs that are not in this record: their releases used the
    /// same file.
    pub fn keep_others(&mut self, earlier: &Record) {
        let others = earlier.vips.iter().copied();
        let others: Vec<IpAddr> = others.filter(|vip| !self.vips.contains(vip)).collect();
        for &vip in &others {
            self.recall(earlier, vip);
        }
        self.vips.extend(others);
    }

    /// Checks where the record is to be written, before anything is changed: nothing may be
    /// there, or an earlier record.
    pub fn place(path: &Path) -> Result<Place<Record>, RecordError> {
        let parse = |file| Record::parse(path, &files::read_from(file, path, LIMIT)?);
        Ok(Place::look(path, "a release record", parse)?)
    }

    /// Replaces the earlier record; the new one also gets a later time.
    pub fn put(&mut self, place: &Place<Record>) -> Result<(), RecordError> {
        if let Some(earlier) = place.earlier() {
            self.taken_at = self.taken_at.max(earlier.taken_at.saturating_add(1));
        }
        let path = place.path();
        let mut text = serde_json::to_vec_pretty(self).map_err(|error| FileError::Io {
            action: "writing",
            path: path.to_owned(),
            source: error.into(),
        })?;
        text.push(b'\n');
        place.put(&text)?;
        Ok(())
    }

    /// Reads what [`Record::put`] wrote, on any node; a dash is standard input.
    pub fn read(path: &Path) -> Result<Self, RecordError> {
        let text = match path.as_os_str() == "-" {
            true => files::read_from(std::io::stdin(), Path::new("standard input"), LIMIT)?,
            false => files::read(path, LIMIT)?,
        };
        Record::parse(path, &text)
    }

    fn parse(path: &Path, text: &[u8]) -> Result<Self, RecordError> {
        let damaged = |source| RecordError::Damaged {
            path: path.to_owned(),
            source,
        };
        #[derive(Deserialize)]
        struct Head {
            schema: String,
        }
        let Head { schema } = serde_json::from_slice(text).map_err(damaged)?;
        if schema != Record::SCHEMA {
            return Err(RecordError::Foreign {
                path: path.to_owned(),
                schema,
            });
        }
        serde_json::from_slice(text).map_err(damaged)
    }
}

/// Adds the lines that are missing.
fn add<T: Eq + Hash + Clone>(lines: &mut Vec<T>, earlier: &[T], is_ours: impl Fn(&T) -> bool) {
    let there: HashSet<&T> = lines.iter().collect();
    let gone: Vec<T> = (earlier.iter())
        .filter(|line| is_ours(line) && !there.contains(line))
        .cloned()
        .collect();
    lines.extend(gone);
}

#[cfg(test)]
pub mod sample;

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: &str = "10.77.0.1";
    const OTHER: &str = "10.77.0.2";

    fn record() -> Record {
        sample::record(&[VIP])
    }

    #[test]
    fn a_record_replaces_an_older_one_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vip.json");
        record().put(&Record::place(&path).unwrap()).unwrap();
        let read: serde_json::Value =
            serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["schema"], "nlmfo.record/1");
        assert_eq!(read["vips"][0], "10.77.0.1");
        // It is newer, whatever the clock says.
        let mut newer = record();
        newer.put(&Record::place(&path).unwrap()).unwrap();
        assert_eq!(newer.taken_at, 2);
        assert_eq!(Record::read(&path).unwrap().taken_at, 2);
        for text in ["old", "", "{}", r#"{"schema": "nlmfo.record/9"}"#] {
            std::fs::write(&path, text).unwrap();
            let error = Record::place(&path).unwrap_err().to_string();
            assert!(
                error.contains("exists and is not a release record"),
                "{error}"
            );
            assert_eq!(std::fs::read(&path).unwrap(), text.as_bytes());
        }
    }

    /// A lock through this VIP, told from others by its svid.
    fn lock(vip: &str, svid: u32) -> LockLine {
        LockLine {
            svid,
            ..sample::lock(vip, 0, 9)
        }
    }

    #[test]
    fn what_an_interrupted_release_recorded_comes_back_once_and_for_its_vip() {
        let mut earlier = record();
        earlier.locks = vec![lock(VIP, 1), lock(VIP, 2), lock(OTHER, 3)];
        let mut now = record();
        now.locks = vec![lock(VIP, 2)];
        now.recall(&earlier, VIP.parse().unwrap());
        assert_eq!(now.locks, [lock(VIP, 2), lock(VIP, 1)]);
    }

    #[test]
    fn a_record_of_other_vips_is_kept_with_the_new_one() {
        let mut earlier = record();
        earlier.vips = vec![VIP.parse().unwrap(), OTHER.parse().unwrap()];
        earlier.locks = vec![lock(VIP, 1), lock(OTHER, 3)];
        let mut now = record();
        now.locks = vec![lock(VIP, 2)];
        now.keep_others(&earlier);
        assert_eq!(now.locks, [lock(VIP, 2), lock(OTHER, 3)]);
        assert_eq!(now.vips, earlier.vips);
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vip.json");
        record().put(&Record::place(&path).unwrap()).unwrap();
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
        let error = Record::place(Path::new("/nonexistent/vip.json")).unwrap_err();
        assert!(
            error.to_string().contains("/nonexistent/vip.json"),
            "{error}"
        );
    }
}
