//! The client books of the VIPs that this node serves.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::book::writer::Writer;
use super::book::{BookError, Client, Key};
use super::state_dir::StateDir;

/// Maximum number of clients of one VIP that wait to be noted. It bounds the memory for a book that
/// cannot be written.
const WAITING_MAX: usize = 65_536;

/// Several books, each opened when its first client comes.
pub struct Books {
    state: StateDir,
    node: String,
    vips: BTreeMap<IpAddr, Kept>,
}

#[derive(Default)]
struct Kept {
    writer: Option<Writer>,
    /// Seen, and not noted yet.
    waiting: BTreeMap<Key, Client>,
}

/// The result of writing the clients of one VIP.
#[derive(Debug)]
pub struct Flushed {
    pub vip: IpAddr,
    /// How many are noted now.
    pub noted: usize,
    /// Why the others are not; they are kept for the next time.
    pub error: Option<BookError>,
}

impl Books {
    pub fn new(state: StateDir, node: String) -> Self {
        Books {
            state,
            node,
            vips: BTreeMap::new(),
        }
    }

    /// Keeps a client to be noted by the next [`Books::flush`]; false if there is no room
    /// for more.
    pub fn see(&mut self, vip: IpAddr, client: Client) -> bool {
        let waiting = &mut self.vips.entry(vip).or_default().waiting;
        let fits = waiting.len() < WAITING_MAX || waiting.contains_key(&client.key());
        if fits {
            waiting.insert(client.key(), client);
        }
        fits
    }

    /// Whether clients wait to be noted.
    #[cfg(test)]
    pub fn is_waiting(&self) -> bool {
        self.vips.values().any(|kept| !kept.waiting.is_empty())
    }

    /// Notes the waiting clients. When it returns, those that count as noted are durable.
    pub fn flush(&mut self) -> Vec<Flushed> {
        let mut flushed = Vec::new();
        for (&vip, kept) in &mut self.vips {
            if kept.waiting.is_empty() {
                continue;
            }
            let error = kept.flush(&self.state, vip, &self.node).err();
            let noted = match error {
                None => std::mem::take(&mut kept.waiting).len(),
                Some(_) => 0,
            };
            flushed.push(Flushed { vip, noted, error });
        }
        flushed
    }

    /// Drops the waiting clients of a VIP whose book this node no longer owns.
    pub fn give_up(&mut self, vip: IpAddr) {
        self.vips.remove(&vip);
    }
}

impl Kept {
    fn flush(&mut self, state: &StateDir, vip: IpAddr, node: &str) -> Result<(), BookError> {
        // After an error it is opened again: the disk may be another one.
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => Writer::open(state, vip, node)?,
        };
        let seen: Vec<Client> = self.waiting.values().cloned().collect();
        writer.note(&seen)?;
        self.writer = Some(writer);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notify::book::Book;

    #[test]
    fn what_cannot_be_noted_waits_until_it_can() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::new(folder.path().join("state"));
        let vip: IpAddr = "10.77.0.1".parse().unwrap();
        let client = Client {
            address: "10.77.0.11".parse().unwrap(),
            name: "c1".into(),
            version: None,
            transport: None,
            first_seen: 1,
            last_seen: 1,
        };
        drop(Writer::open(&state, vip, "other").unwrap());
        let mut books = Books::new(state.clone(), "this".to_owned());
        assert!(books.see(vip, client.clone()));
        let refused = books.flush();
        assert!(matches!(refused[0].error, Some(BookError::Owned { .. })));
        assert!(books.is_waiting());

        drop(Writer::take_over(&state, vip, "this").unwrap());
        let flushed = books.flush();
        assert_eq!((flushed[0].noted, flushed[0].error.is_none()), (1, true));
        assert!(!books.is_waiting());
        let book = Book::read(&state, vip).unwrap().book;
        assert_eq!(book.clients().collect::<Vec<_>>(), [&client]);
    }
}
