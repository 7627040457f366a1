//! Locks, waiters and shares for display and JSON: each line has the host, the file and its path.

use std::fmt::Write;
use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tracing::debug;

use super::host::{NlmVersion, Transport};
use super::table::{FileId, FileInfo, HostId, HostInfo, LockTable, Mode, Range};
use crate::foreign::{self, Name, Shown};
use crate::kernel::path::{LockedFile, PathFinder};

/// The host in a line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HostLine {
    pub vip: IpAddr,
    pub client: IpAddr,
    /// The client's own name.
    pub client_name: Name,
    pub version: NlmVersion,
    pub transport: Transport,
    pub netns: u32,
}

/// The file in a line.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileLine {
    /// `major:minor`, in decimal.
    #[serde(deserialize_with = "foreign::text")]
    pub dev: String,
    pub ino: u64,
    /// The NFS file handle in hexadecimal.
    #[serde(deserialize_with = "foreign::text")]
    pub fh: String,
    /// As [`foreign::Name`] shows it; null where it cannot be found.
    #[serde(deserialize_with = "foreign::some_text")]
    pub path: Option<String>,
}

impl std::fmt::Display for FileLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.path {
            Some(path) => f.pad(path),
            None => f.pad(&format!("device {} inode {}", self.dev, self.ino)),
        }
    }
}

/// A held lock.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct LockLine {
    #[serde(flatten)]
    pub host: Arc<HostLine>,
    /// Together with the host, this identifies the lock's owner.
    pub svid: u32,
    pub mode: Mode,
    pub range: Range,
    pub file: Arc<FileLine>,
}

/// A blocked request.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WaiterLine {
    #[serde(flatten)]
    pub lock: LockLine,
    /// The lock is granted, and lockd is notifying the client.
    pub granted: bool,
}

/// A DOS share reservation.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ShareLine {
    #[serde(flatten)]
    pub host: Arc<HostLine>,
    /// 0 none, 1 read, 2 write, 3 both.
    pub access: u32,
    /// What is denied to others: the same numbers.
    pub deny: u32,
    /// The owner handle in hexadecimal, its first 64 bytes.
    #[serde(deserialize_with = "foreign::text")]
    pub owner: String,
    pub file: Arc<FileLine>,
}

/// A table with the paths of its files, from which lines are made.
pub struct Described<'a> {
    table: &'a LockTable,
    hosts: Vec<Arc<HostLine>>,
    files: Vec<Option<Arc<FileLine>>>,
}

impl<'a> Described<'a> {
    /// Looks up the path of every file that something is held on.
    pub fn new(table: &'a LockTable, paths: &mut PathFinder) -> Self {
        let used = table.active_files();
        let wanted: Vec<LockedFile> = used.iter().map(|&id| table.file(id).into()).collect();
        let mut files = vec![None; table.files.len()];
        for (id, path) in used.into_iter().zip(paths.find_all(&wanted)) {
            if let Err(reason) = &path {
                debug!(ino = table.file(id).ino, %reason, "no path");
            }
            let info = table.file(id);
            files[id.index()] = Some(Arc::new(FileLine {
                dev: format!("{}:{}", info.major, info.minor),
                ino: info.ino,
                fh: hex(&info.fh),
                path: path.ok().map(|path| path.shown().to_string()),
            }));
        }
        let hosts = (table.hosts.iter())
            .map(|info| Arc::new(HostLine::from(info)))
            .collect();
        Described {
            table,
            hosts,
            files,
        }
    }

    /// The held locks, in the table's order.
    pub fn locks(&self) -> impl Iterator<Item = LockLine> + Clone {
        self.table.locks.iter().map(|lock| LockLine {
            host: self.host(lock.host),
            svid: lock.svid,
            mode: lock.mode,
            range: lock.range,
            file: self.file(lock.file),
        })
    }

    /// The blocked requests.
    pub fn waiters(&self) -> impl Iterator<Item = WaiterLine> + Clone {
        self.table.waiters.iter().map(|waiter| WaiterLine {
            lock: LockLine {
                host: self.host(waiter.host),
                svid: waiter.svid,
                mode: waiter.mode,
                range: waiter.range,
                file: self.file(waiter.file),
            },
            granted: waiter.granted,
        })
    }

    /// The DOS shares.
    pub fn shares(&self) -> impl Iterator<Item = ShareLine> + Clone {
        self.table.shares.iter().map(|share| ShareLine {
            host: self.host(share.host),
            access: share.access,
            deny: share.deny,
            owner: hex(&share.owner),
            file: self.file(share.file),
        })
    }

    /// What a line says of this host.
    pub fn host(&self, id: HostId) -> Arc<HostLine> {
        Arc::clone(&self.hosts[id.index()])
    }

    fn file(&self, id: FileId) -> Arc<FileLine> {
        (self.files[id.index()].clone()).expect("every file in use was described")
    }
}

impl From<&HostInfo> for HostLine {
    fn from(info: &HostInfo) -> Self {
        HostLine {
            vip: info.key.vip,
            client: info.key.client,
            client_name: info.name.clone(),
            version: info.key.version,
            transport: info.key.transport,
            netns: info.key.netns,
        }
    }
}

impl From<&FileInfo> for LockedFile {
    fn from(info: &FileInfo) -> Self {
        LockedFile {
            handle: info.fh.clone(),
            device: info.major << 20 | info.minor,
            inode: info.ino,
        }
    }
}

/// Bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        write!(text, "{byte:02x}").expect("writing to a string");
    }
    text
}
