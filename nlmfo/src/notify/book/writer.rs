//! Writing a book: an entry counts once it is on disk and no other node has begun a term.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::net::IpAddr;

use tracing::debug;

use super::line::{self, Head, Line};
use super::term::{Folder, Wanted};
use super::{Book, BookError, Client, Owner};
use crate::files::{self, PRIVATE};
use crate::notify::state_dir::{self, Readers, StateDir};
use crate::times;

/// A file with more than this many bytes for each client, plus [`COMPACT_LEAST`], is rewritten: some
/// eight lines for each client.
const COMPACT_PER_CLIENT: u64 = 1600;
const COMPACT_LEAST: u64 = 64 * 1024;

/// A VIP's book, open for its owner. Several processes of one node may have it open.
#[derive(Debug)]
pub struct Writer {
    folder: Folder,
    node: String,
    term: u64,
    file: File,
    book: Book,
    /// Bytes of the file that `book` knows of; more were written by another process.
    known: u64,
}

impl Writer {
    /// Opens the book of a VIP that belongs to this node or has no owner yet.
    pub fn open(state: &StateDir, vip: IpAddr, node: &str) -> Result<Self, BookError> {
        Writer::open_in(Folder::new(state, vip), node)
    }

    fn open_in(folder: Folder, node: &str) -> Result<Self, BookError> {
        match newest(&folder)? {
            None => Writer::begin(folder, node, 0),
            Some(owner) if owner.node == node => Writer::resume(folder, node, owner.term),
            Some(owner) => Err(owned(folder.vip, owner)),
        }
    }

    /// Makes this node the owner of the book, whichever node owned it.
    pub fn take_over(state: &StateDir, vip: IpAddr, node: &str) -> Result<Self, BookError> {
        let folder = Folder::new(state, vip);
        match newest(&folder)? {
            Some(owner) if owner.node == node => Writer::resume(folder, node, owner.term),
            owner => Writer::begin(folder, node, owner.map_or(0, |owner| owner.term)),
        }
    }

    /// The book as it was read when it was opened, and what was noted since.
    #[cfg(test)]
    pub(super) fn book(&self) -> &Book {
        &self.book
    }

    /// Notes sightings of clients. When it returns, what was new in them is durable and will be known
    /// to the next owner; after an error, it may or may not be.
    pub fn note(&mut self, seen: &[Client]) -> Result<(), BookError> {
        self.catch_up()?;
        let news = seen.iter().filter_map(|seen| self.book.news(seen));
        let lines: Vec<Line> = news.map(Line::Client).collect();
        self.append(&lines)?;
        self.compact_if_long()
    }

    /// Reads again what other processes have written: one may have removed a client that is seen now.
    fn catch_up(&mut self) -> Result<(), BookError> {
        let is_newest = self.folder.terms()?.last() == Some(&self.term);
        if is_newest && self.length()? == self.known {
            return Ok(());
        }
        *self = Writer::open_in(self.folder.clone(), &self.node)?;
        Ok(())
    }

    fn length(&self) -> Result<u64, BookError> {
        let length = self.file.metadata().map(|file| file.len());
        length.map_err(|error| self.failed(error))
    }

    /// Removes a client, until it locks again.
    pub fn forget(&mut self, client: IpAddr) -> Result<(), BookError> {
        self.append(&[Line::Forgotten { client }])
    }

    fn append(&mut self, lines: &[Line]) -> Result<(), BookError> {
        if lines.is_empty() {
            return Ok(());
        }
        let mut text = Vec::new();
        for line in lines {
            line::encode(line, &mut text);
        }
        loop {
            self.write(&text)?;
            // Only now: a node that began a term earlier may have read the file without this.
            match newest(&self.folder)? {
                Some(owner) if owner.term == self.term => break,
                Some(owner) if owner.node == self.node => {
                    // Another nlmfo process on this node has begun it.
                    let folder = self.folder.clone();
                    *self = Writer::resume(folder, &self.node, owner.term)?;
                }
                Some(owner) => return Err(owned(self.folder.vip, owner)),
                None => return Err(self.failed(io::ErrorKind::NotFound.into())),
            }
        }
        for line in lines {
            self.book.apply(line);
        }
        Ok(())
    }

    fn write(&mut self, text: &[u8]) -> Result<(), BookError> {
        // Without a lock: the kernel appends one write behind another, and a line that two
        // processes of this node see cut off gets two newlines.
        let mut write = || {
            let written = append_to(&mut self.file, text)?;
            // The whole file is known only if no other process has written in between.
            let after = self.known + written;
            if self.file.metadata()?.len() == after {
                self.known = after;
            }
            Ok(())
        };
        write().map_err(|error| self.failed(error))
    }

    /// The first of a term: its file is created by one node alone.
    fn begin(folder: Folder, node: &str, last: u64) -> Result<Self, BookError> {
        let head = Head {
            schema: line::SCHEMA.into(),
            vip: folder.vip,
            owner: Owner {
                node: node.to_owned(),
                term: last + 1,
                since: times::now(),
            },
        };
        let mut text = Vec::new();
        line::encode(&head, &mut text);
        let path = folder.file(last + 1);
        let created = state_dir::create(folder.path(), Readers::Statd)
            .and_then(|()| files::create_new(&path, &text, PRIVATE, state_dir::let_statd_read));
        match created {
            Ok(()) => Writer::resume(folder, node, last + 1),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match newest(&folder)? {
                Some(owner) if owner.node == node => Writer::resume(folder, node, owner.term),
                Some(owner) => Err(owned(folder.vip, owner)),
                None => Err(BookError::File {
                    path,
                    source: error,
                }),
            },
            Err(source) => Err(BookError::File { path, source }),
        }
    }

    /// Opens the file of a term of this node, and copies the earlier terms into it if that was not
    /// completed.
    fn resume(folder: Folder, node: &str, term: u64) -> Result<Self, BookError> {
        let path = folder.file(term);
        let file = match OpenOptions::new().read(true).append(true).open(&path) {
            Ok(file) => file,
            // Other nodes have begun terms since, and removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return match newest(&folder)? {
                    Some(owner) if owner.node == node && owner.term != term => {
                        Writer::resume(folder, node, owner.term)
                    }
                    Some(owner) if owner.node != node => Err(owned(folder.vip, owner)),
                    _ => Err(BookError::File {
                        path,
                        source: error,
                    }),
                };
            }
            Err(source) => return Err(BookError::File { path, source }),
        };
        let is_complete =
            (folder.read_term(term, &Wanted::All)?).is_some_and(|file| file.is_complete());
        // Before it is read: a line that is written in the meantime is read twice.
        let known = file.metadata().map(|file| file.len());
        let known = known.map_err(|source| BookError::File {
            path: folder.file(term),
            source,
        })?;
        let mut writer = Writer {
            book: folder.read(&Wanted::All)?.book,
            known,
            folder,
            node: node.to_owned(),
            term,
            file,
        };
        if !is_complete {
            writer.carry_over()?;
        }
        Ok(writer)
    }

    /// Writes everything that still holds into the current file, after which the older ones are not
    /// needed. The previous one stays, for diagnosis.
    fn carry_over(&mut self) -> Result<(), BookError> {
        let mut text = Vec::new();
        for client in self.book.clients() {
            line::encode(&Line::Client(client.clone()), &mut text);
        }
        line::encode(&Line::Complete, &mut text);
        self.write(&text)?;
        let terms = self.folder.terms()?;
        if terms.last() != Some(&self.term) {
            return match newest(&self.folder)? {
                Some(owner) if owner.node != self.node => Err(owned(self.folder.vip, owner)),
                // Another nlmfo process on this node is writing it.
                _ => Ok(()),
            };
        }
        let older: Vec<u64> = terms.into_iter().filter(|&term| term < self.term).collect();
        if let Some((_, needless)) = older.split_last() {
            for &term in needless {
                let path = self.folder.file(term);
                if let Err(error) = std::fs::remove_file(&path) {
                    debug!(path = %path.display(), %error, "left behind");
                }
            }
        }
        Ok(())
    }

    /// Starts a new file if the current one has grown long: a client that locks for years adds a line
    /// now and then.
    fn compact_if_long(&mut self) -> Result<(), BookError> {
        let length =
            (self.file.metadata().map(|file| file.len())).map_err(|error| self.failed(error))?;
        if length > COMPACT_LEAST + COMPACT_PER_CLIENT * self.book.len() as u64 {
            *self = Writer::begin(self.folder.clone(), &self.node, self.term)?;
        }
        Ok(())
    }

    fn failed(&self, source: io::Error) -> BookError {
        BookError::File {
            path: self.folder.file(self.term),
            source,
        }
    }
}

/// The owner of the book: the node that began the newest term.
fn newest(folder: &Folder) -> Result<Option<Owner>, BookError> {
    loop {
        let Some(&term) = folder.terms()?.last() else {
            return Ok(None);
        };
        if let Some(owner) = folder.read_owner(term)? {
            return Ok(Some(owner));
        }
    }
}

fn owned(vip: IpAddr, owner: Owner) -> BookError {
    let Owner { node, term, .. } = owner;
    BookError::Owned { vip, node, term }
}

/// If a crash has cut off the last line, starts a new one. Returns the number of bytes written.
fn append_to(file: &mut File, text: &[u8]) -> io::Result<u64> {
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.seek(SeekFrom::Start(length - 1))?;
        file.read_exact(&mut last)?;
    }
    let mut whole = Vec::with_capacity(text.len() + 1);
    if last != *b"\n" {
        whole.push(b'\n');
    }
    whole.extend_from_slice(text);
    file.write_all(&whole)?;
    file.sync_data()?;
    Ok(whole.len() as u64)
}
