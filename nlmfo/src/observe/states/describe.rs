//! NFSv4 clients and states as people and JSON readers see them.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::info::Info;
use super::{Access, Kind, Nfs4Client, Standing, StateTable};
use crate::foreign::{Name, Shown};
use crate::kernel::path::{LockedFile, PathFinder};
use crate::observe::behind::{Holder, Holders};
use crate::observe::describe::{FileLine, hex};
use crate::observe::table::{FileInfo, Mode, Range};

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ClientLine4 {
    /// The client ID, as in `clients/N/info`.
    pub client_id: String,
    /// N of `/proc/fs/nfsd/clients/N`.
    pub number: u64,
    /// The minor version.
    pub minor: u32,
    pub client: IpAddr,
    /// Where its connections come from, if that is another address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<IpAddr>,
    /// The owner string that it introduced itself with, its first 128 bytes.
    pub client_name: Name,
    /// Every server address that it uses.
    pub vips: Vec<IpAddr>,
    /// Whether it may use another one: it is not connected.
    pub vip_unknown: bool,
    /// Null for NFSv4.0, whose connections nfsd does not count.
    pub connections: Option<usize>,
    #[serde(flatten)]
    pub info: Info,
}

impl ClientLine4 {
    /// The server addresses in one word.
    pub fn vips_text(&self) -> String {
        let vips: Vec<String> = self.vips.iter().map(IpAddr::to_string).collect();
        match (vips.is_empty(), self.vip_unknown) {
            (true, _) => "not connected".to_owned(),
            (false, false) => vips.join(","),
            (false, true) => format!("{},?", vips.join(",")),
        }
    }
}

impl From<&Nfs4Client> for ClientLine4 {
    fn from(client: &Nfs4Client) -> Self {
        ClientLine4 {
            client_id: client.id_text(),
            number: client.number,
            minor: client.minor,
            client: client.address,
            peers: match client.peers[..] {
                [only] if only == client.address => Vec::new(),
                _ => client.peers.clone(),
            },
            client_name: client.name.clone(),
            vips: client.vips.clone(),
            vip_unknown: client.vip_unknown,
            connections: client.connections,
            info: client.info.clone(),
        }
    }
}

/// What a lock covers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RangeLine {
    pub mode: Mode,
    pub range: Range,
}

/// An open, lock, delegation or layout.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StateLine {
    #[serde(flatten)]
    pub client: ClientLine4,
    pub kind: Kind,
    pub standing: Standing,
    pub access: Access,
    /// What others are denied.
    pub deny: Access,
    /// What a lock covers; empty for other kinds, and for a lock's state that has
    /// outlived its last range.
    pub ranges: Vec<RangeLine>,
    /// The open or lock owner in hexadecimal, its first 128 bytes.
    pub owner: String,
    /// Null for a state whose file is gone.
    pub file: Option<FileLine>,
    /// The stateid in hexadecimal: generation in this machine's byte order, then the rest.
    pub stateid: String,
}

impl StateLine {
    /// What is held, as text.
    pub fn what(&self) -> String {
        let what = match self.kind {
            Kind::Open if self.deny != Access::default() => {
                format!("open {} deny {}", self.access, self.deny)
            }
            Kind::Open | Kind::Delegation => format!("{} {}", self.kind, self.access),
            kind => kind.to_string(),
        };
        match self.standing {
            Standing::Held => what,
            Standing::Closed => format!("{what} (closed)"),
            Standing::Revoked => format!("{what} (revoked)"),
            Standing::AdminRevoked => format!("{what} (admin-revoked)"),
        }
    }

    /// The file in one word.
    pub fn file_text(&self) -> String {
        self.file
            .as_ref()
            .map_or("-".to_owned(), FileLine::to_string)
    }
}

impl std::fmt::Display for StateLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let client = &self.client;
        write!(
            f,
            "{} ({}, v4.{}, {}): {}",
            client.client,
            client.client_name,
            client.minor,
            match client.vips.is_empty() {
                true => client.vips_text(),
                false => format!("through {}", client.vips_text()),
            },
            self.what()
        )?;
        for (nth, line) in self.ranges.iter().enumerate() {
            let comma = if nth == 0 { "" } else { "," };
            write!(f, "{comma} {} {}", line.mode, line.range)?;
        }
        write!(f, " of {}", self.file_text())
    }
}

/// A request that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WaiterLine4 {
    #[serde(flatten)]
    pub client: ClientLine4,
    pub mode: Mode,
    pub range: Range,
    /// The lock owner in hexadecimal, its first 128 bytes; empty if it holds no lock.
    pub owner: String,
    pub file: FileLine,
    /// Whose locks it waits for.
    pub behind: Vec<Holder>,
}

/// The requests with the paths of their files, in the table's order.
pub fn describe_waiters(
    table: &StateTable,
    holders: &Holders,
    paths: &mut PathFinder,
) -> Vec<WaiterLine4> {
    let files = table.waiters.iter().map(|waiter| &waiter.file);
    let wanted: Vec<LockedFile> = files.map(LockedFile::from).collect();
    let found = paths.find_all(&wanted);
    (table.waiters.iter().zip(found))
        .map(|(waiter, path)| WaiterLine4 {
            client: ClientLine4::from(&table.clients[waiter.client]),
            mode: waiter.mode,
            range: waiter.range,
            owner: hex(&waiter.owner),
            file: file_line(&waiter.file, path.ok()),
            behind: holders.of4(table, waiter),
        })
        .collect()
}

fn file_line(info: &FileInfo, path: Option<PathBuf>) -> FileLine {
    FileLine {
        dev: format!("{}:{}", info.major, info.minor),
        ino: info.ino,
        fh: hex(&info.fh),
        path: path.map(|path| path.shown().to_string()),
    }
}

/// The states with the paths of their files, in the table's order.
pub fn describe(table: &StateTable, paths: &mut PathFinder) -> Vec<StateLine> {
    let files: Vec<&FileInfo> = (table.states.iter())
        .filter_map(|state| state.file.as_ref())
        .collect();
    let wanted: Vec<LockedFile> = files.iter().map(|file| LockedFile::from(*file)).collect();
    let mut found = (files.into_iter().zip(paths.find_all(&wanted)))
        .map(|(info, path)| file_line(info, path.ok()));
    let clients: Vec<ClientLine4> = table.clients.iter().map(ClientLine4::from).collect();
    (table.states.iter())
        .map(|state| StateLine {
            client: clients[state.client].clone(),
            kind: state.kind,
            standing: state.standing,
            access: state.access,
            deny: state.deny,
            ranges: (state.ranges.iter())
                .map(|&(mode, range)| RangeLine { mode, range })
                .collect(),
            owner: hex(&state.owner),
            file: state.file.as_ref().and_then(|_| found.next()),
            stateid: hex(&state.id),
        })
        .collect()
}
