//! The client book: which client has used lockd through which VIP, stored so that the node that takes
//! over the VIP knows which clients to notify, even if the old node died.
//!
//! A VIP's book is a row of files in its directory of the state directory, `clients.0000000001` and so
//! on: one for each *term*, the time in which one node owns the VIP. Only the owner of the newest term
//! writes, and only to its own file ([`writer`]); the node that creates the next file has taken over
//! the book, and the old owner notices it at its next write. [`line`](self::line) describes the content
//! of a file.

mod error;
pub(crate) mod line;
mod term;
#[cfg(test)]
mod tests;
pub(crate) mod writer;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use self::line::Line;
use self::term::{Folder, Wanted};
use super::state_dir::StateDir;
use crate::foreign::{self, Name};
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::table::HostInfo;

pub(crate) use self::error::BookError;

/// A client that is known to be there is noted again after this many seconds.
pub(crate) const NOTED_AGAIN: u64 = 600;

/// A client of a VIP. Times in seconds since 1970.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Where its calls to lockd come from.
    #[serde(rename = "client")]
    pub address: IpAddr,
    /// The name that it calls itself, or under which statd has it.
    pub name: Name,
    /// Null if the client is known from statd's record only.
    pub version: Option<NlmVersion>,
    /// Null if the client is known from statd's record only.
    pub transport: Option<Transport>,
    /// When it first used lockd through the VIP.
    pub first_seen: u64,
    /// Exact to [`NOTED_AGAIN`].
    pub last_seen: u64,
}

/// Which host a client is to the book: one that comes over two transports is in it twice.
pub(crate) type Key = (IpAddr, Option<NlmVersion>, Option<Transport>);

impl Client {
    pub(crate) fn key(&self) -> Key {
        (self.address, self.version, self.transport)
    }

    /// A host that was seen at a time.
    pub(crate) fn seen(host: &HostInfo, at: u64) -> Self {
        Client {
            address: host.key.client,
            name: host.name.clone(),
            version: Some(host.key.version),
            transport: Some(host.key.transport),
            first_seen: at,
            last_seen: at,
        }
    }
}

/// The clients of one VIP.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Book {
    clients: BTreeMap<Key, Client>,
}

impl Book {
    /// What a sighting changes, if anything worth a line.
    pub(crate) fn news(&self, seen: &Client) -> Option<Client> {
        let Some(known) = self.clients.get(&seen.key()) else {
            return Some(seen.clone());
        };
        let is_stale = seen.last_seen >= known.last_seen.saturating_add(NOTED_AGAIN);
        (is_stale || known.name != seen.name).then(|| Client {
            first_seen: known.first_seen.min(seen.first_seen),
            last_seen: known.last_seen.max(seen.last_seen),
            ..seen.clone()
        })
    }

    /// Takes a line of the book in.
    pub(crate) fn apply(&mut self, line: &Line) {
        match line {
            Line::Client(client) => {
                self.clients.insert(client.key(), client.clone());
            }
            Line::Forgotten { client } => {
                self.clients.retain(|(address, ..), _| address != client);
            }
            Line::Complete => {}
        }
    }

    /// By address, version and transport.
    pub fn clients(&self) -> impl Iterator<Item = &Client> {
        self.clients.values()
    }

    pub(super) fn len(&self) -> usize {
        self.clients.len()
    }

    /// What the state directory has of a VIP; empty if it has nothing.
    ///
    /// # Errors
    /// If a file of the book cannot be read, is damaged, or has another schema.
    pub fn read(state: &StateDir, vip: IpAddr) -> Result<ReadBook, BookError> {
        Folder::new(state, vip).read(&Wanted::All)
    }

    /// Whether the VIP has a client of this name or address. Only the lines about
    /// it are looked at: a book of 10,000 clients takes a millisecond or two.
    pub(crate) fn has_client(
        state: &StateDir,
        vip: IpAddr,
        client: impl AsRef<OsStr>,
    ) -> Result<bool, BookError> {
        let client = client.as_ref();
        let address = client.to_str().and_then(|text| text.parse::<IpAddr>().ok());
        let name = match address {
            Some(address) => Name::from(address.to_canonical().to_string()),
            None => Name::from(client),
        };
        // As it stands in the book.
        let text = name.to_string();
        let book = Folder::new(state, vip).read(&Wanted::Naming(&text))?.book;
        let is_it = |client: &Client| client.name == name || client.address.to_string() == text;
        Ok(book.clients().any(is_it))
    }
}

/// A book with what was found about it.
#[derive(Clone, Debug, Default)]
pub struct ReadBook {
    /// The clients; empty if there is no book.
    pub book: Book,
    /// None if there is no book.
    pub owner: Option<Owner>,
    /// Incomplete lines, as `file:line`, which are ignored: a crash during a write leaves one; more
    /// than one is damage.
    pub torn: Vec<String>,
}

/// Whose book it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its node name (`uname -n`).
    #[serde(deserialize_with = "foreign::text")]
    pub node: String,
    /// The number of the term, as in the name of its file.
    pub term: u64,
    /// When the term began, in seconds since 1970.
    pub since: u64,
}
