//! The files of a VIP's book, and their sum.

use std::fs;
use std::io::{self, BufRead, BufReader, Read};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use memchr::memmem::Finder;
use serde::Deserialize;

use super::line::{self, Head, Line};
use super::{BookError, Owner, ReadBook};
use crate::files::{self, FileError, LIMIT};
use crate::notify::state_dir::StateDir;

const PREFIX: &str = "clients.";

/// How often a reader retries if a file is gone because its owner has just begun another one.
const READ_TRIES: u32 = 16;

/// A VIP's directory.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    pub vip: IpAddr,
    path: PathBuf,
}

/// Which lines of a file to read.
pub(super) enum Wanted<'a> {
    All,
    /// Those that have this text as a name or an address, and those that are not of one
    /// client.
    Naming(&'a str),
}

impl Wanted<'_> {
    /// A finder for lines that need not be read; none if all are.
    fn finder(&self) -> Option<Finder<'static>> {
        let Wanted::Naming(text) = self else {
            return None;
        };
        let quoted = serde_json::to_string(text).expect("a string");
        Some(Finder::new(&quoted).into_owned())
    }
}

/// A file of the book as it was read.
pub(super) struct TermFile {
    pub head: Head,
    pub lines: Vec<Line>,
    /// Numbers of the incomplete lines, from 1.
    torn: Vec<usize>,
}

impl TermFile {
    pub fn is_complete(&self) -> bool {
        self.lines.contains(&Line::Complete)
    }
}

impl Folder {
    pub fn new(state: &StateDir, vip: IpAddr) -> Self {
        Folder {
            vip,
            path: state.vip(vip),
        }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file of a term.
    pub fn file(&self, term: u64) -> PathBuf {
        self.path.join(format!("{PREFIX}{term:010}"))
    }

    /// The terms that have a file, in order.
    pub fn terms(&self) -> Result<Vec<u64>, BookError> {
        let failed = |source| BookError::File {
            path: self.path.clone(),
            source,
        };
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut terms = Vec::new();
        for entry in entries {
            let name = entry.map_err(failed)?.file_name();
            let term: Option<u64> = (name.to_str())
                .and_then(|name| name.strip_prefix(PREFIX))
                .and_then(|term| term.parse().ok());
            terms.extend(term);
        }
        terms.sort_unstable();
        Ok(terms)
    }

    /// Reads one file; none if it is not there.
    pub fn read_term(&self, term: u64, wanted: &Wanted) -> Result<Option<TermFile>, BookError> {
        let path = self.file(term);
        match files::read(&path, LIMIT) {
            Ok(text) => parse(&path, &text, wanted).map(Some),
            Err(error) if error.is_absence() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Who began a term; none if its file is not there.
    pub fn read_owner(&self, term: u64) -> Result<Option<Owner>, BookError> {
        let path = self.file(term);
        let read = files::open(&path).and_then(|file| {
            let mut first = Vec::new();
            let read = BufReader::new(file.take(LIMIT)).read_until(b'\n', &mut first);
            read.map(|_| first).map_err(FileError::io("reading", &path))
        });
        match read {
            Ok(first) => {
                let first = first.strip_suffix(b"\n").unwrap_or(&first);
                head(&path, first).map(|head| Some(head.owner))
            }
            Err(error) if error.is_absence() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The sum of all terms.
    pub fn read(&self, wanted: &Wanted) -> Result<ReadBook, BookError> {
        for _ in 0..READ_TRIES {
            if let Some(book) = self.try_read(wanted)? {
                return Ok(book);
            }
        }
        Err(BookError::File {
            path: self.path.clone(),
            source: io::Error::other("its files change faster than they can be read"),
        })
    }

    /// None if a file was removed in the meantime.
    fn try_read(&self, wanted: &Wanted) -> Result<Option<ReadBook>, BookError> {
        let mut files = Vec::new();
        for term in self.terms()?.into_iter().rev() {
            let Some(file) = self.read_term(term, wanted)? else {
                return Ok(None);
            };
            let is_complete = file.is_complete();
            files.push((term, file));
            if is_complete {
                break;
            }
        }
        let mut read = ReadBook {
            owner: files.first().map(|(_, file)| file.head.owner.clone()),
            ..ReadBook::default()
        };
        for (term, file) in files.iter().rev() {
            for line in &file.lines {
                read.book.apply(line);
            }
            let path = self.file(*term);
            let torn = file.torn.iter();
            (read.torn).extend(torn.map(|number| format!("{}:{number}", path.display())));
        }
        Ok(Some(read))
    }
}

/// The first line of a file, which was durable before the file had its name.
fn head(path: &Path, first: &[u8]) -> Result<Head, BookError> {
    #[derive(Deserialize)]
    struct Schema {
        schema: String,
    }
    let damaged = || BookError::Damaged {
        path: path.to_owned(),
    };
    let json = line::checked(first).ok_or_else(damaged)?;
    let Schema { schema } = serde_json::from_slice(json).map_err(|_| damaged())?;
    if schema != line::SCHEMA {
        return Err(BookError::Foreign {
            path: path.to_owned(),
            schema,
        });
    }
    serde_json::from_slice(json).map_err(|_| damaged())
}

fn parse(path: &Path, text: &[u8], wanted: &Wanted) -> Result<TermFile, BookError> {
    let mut lines = text.split(|&byte| byte == b'\n');
    let mut file = TermFile {
        head: head(path, lines.next().unwrap_or_default())?,
        lines: Vec::new(),
        torn: Vec::new(),
    };
    let naming = wanted.finder();
    for (number, text) in lines.enumerate().filter(|(_, text)| !text.is_empty()) {
        let is_needless = |naming: &Finder| naming.find(text).is_none();
        if line::is_of_client(text) && naming.as_ref().is_some_and(is_needless) {
            continue;
        }
        match line::checked(text).and_then(|json| serde_json::from_slice(json).ok()) {
            Some(line) => file.lines.push(line),
            None => file.torn.push(number + 2),
        }
    }
    Ok(file)
}
