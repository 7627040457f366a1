//! What is remembered between snapshots: when a lock was first seen, and the names of files.
//! Entries are dropped when the lock or file is gone.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::foreign::Shown;
use crate::kernel::path::{LockedFile, PathFinder};
use crate::observe::table::{FileInfo, Lock, LockTable};
use crate::ticks::detail::Since;

/// Locks whose age is known: 16 MB.
const AGES: usize = 500_000;

/// A file may be renamed while it is locked.
const NAME_HOLDS: Duration = Duration::from_mins(1);

/// When each lock was first seen.
#[derive(Debug, Default)]
pub struct Ages {
    hasher: RandomState,
    /// By the identity of a lock: see [`Keys`].
    seen: HashMap<u64, u64>,
    first_look_ms: Option<u64>,
}

/// The hosts' and files' parts of a lock's key.
#[derive(Debug, Default)]
pub struct Keys {
    hosts: Vec<u64>,
    files: Vec<u64>,
    hasher: RandomState,
}

impl Keys {
    fn of(table: &LockTable, hasher: &RandomState) -> Self {
        let hosts = table.hosts.iter().map(|host| hasher.hash_one(host.key));
        let files = (table.files.iter()).map(|file| hasher.hash_one((&file.fh, file.ino)));
        Keys {
            hosts: hosts.collect(),
            files: files.collect(),
            hasher: hasher.clone(),
        }
    }

    fn key(&self, lock: &Lock) -> u64 {
        self.hasher.hash_one((
            self.hosts[lock.host.index()],
            self.files[lock.file.index()],
            lock.svid,
            lock.mode,
            lock.range,
        ))
    }
}

impl Ages {
    /// Adds the locks of a snapshot and drops those that are gone.
    pub fn look(&mut self, table: &LockTable, at_ms: u64) -> Keys {
        let first = *self.first_look_ms.get_or_insert(at_ms);
        let keys = Keys::of(table, &self.hasher);
        if table.locks.len() > AGES {
            self.seen = HashMap::new();
            // A lock that appears again may have been held all the time.
            self.first_look_ms = None;
            return keys;
        }
        debug_assert!(first <= at_ms);
        let mut seen = HashMap::with_capacity(table.locks.len());
        for lock in &table.locks {
            let key = keys.key(lock);
            seen.insert(key, self.seen.get(&key).copied().unwrap_or(at_ms));
        }
        self.seen = seen;
        keys
    }

    pub fn since(&self, keys: &Keys, lock: &Lock) -> Option<Since> {
        let ms = *self.seen.get(&keys.key(lock))?;
        Some(Since {
            ms,
            or_before: Some(ms) == self.first_look_ms,
        })
    }
}

/// The names of files, looked up again from time to time.
#[derive(Debug, Default)]
pub struct Names {
    known: HashMap<FileKey, (Instant, String)>,
}

type FileKey = (u32, u32, Vec<u8>);

impl Names {
    /// Makes sure that these files' names are known, and forgets all others. Mounts are
    /// held open only while it runs: a filesystem that is watched can be unmounted.
    pub fn look_up(&mut self, files: &[&FileInfo], finder: &mut PathFinder) {
        let now = Instant::now();
        let mut known = HashMap::with_capacity(files.len());
        let mut unknown = Vec::new();
        for &file in files {
            let key = key(file);
            match self.known.remove(&key) {
                Some((at, name)) if now - at < NAME_HOLDS => {
                    known.insert(key, (at, name));
                }
                _ => unknown.push(file),
            }
        }
        let locked: Vec<LockedFile> = unknown.iter().map(|&info| LockedFile::from(info)).collect();
        for (info, path) in unknown.into_iter().zip(finder.find_all(&locked)) {
            let name = match path {
                Ok(path) => path.shown().to_string(),
                Err(_) => nameless(info),
            };
            known.insert(key(info), (now, name));
        }
        self.known = known;
    }

    pub fn name(&self, info: &FileInfo) -> String {
        match self.known.get(&key(info)) {
            Some((_, name)) => name.clone(),
            None => nameless(info),
        }
    }
}

fn key(info: &FileInfo) -> FileKey {
    (info.major, info.minor, info.fh.clone())
}

fn nameless(info: &FileInfo) -> String {
    format!("device {}:{} inode {}", info.major, info.minor, info.ino)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ticks::tables;

    #[test]
    fn a_lock_is_as_old_as_its_first_look() {
        let mut ages = Ages::default();
        let mut table = tables::many(1, 3);
        let late = table.locks.pop().unwrap();
        ages.look(&table, 100);
        table.locks.push(late);
        let keys = ages.look(&table, 2_100);
        let since = |place: usize| ages.since(&keys, &table.locks[place]).unwrap();
        let (old, new) = (since(0), since(2));
        assert_eq!((old.ms, old.or_before), (100, true));
        assert_eq!((new.ms, new.or_before), (2_100, false));

        // Gone and taken again: it is another lock.
        let again = table.locks.remove(0);
        ages.look(&table, 3_000);
        table.locks.insert(0, again);
        let keys = ages.look(&table, 4_000);
        let since = ages.since(&keys, &table.locks[0]).unwrap();
        assert_eq!((since.ms, since.or_before), (4_000, false));
        assert_eq!(ages.seen.len(), 3);
    }

    #[test]
    fn a_file_without_a_name_is_told_by_its_inode() {
        let table = tables::many(1, 2);
        let mut names = Names::default();
        let mut finder = PathFinder::new(0).unwrap();
        let file = table.file(table.active_files()[0]);
        names.look_up(&[file], &mut finder);
        let name = names.name(file);
        assert!(name.contains("inode"), "{name}");
        names.look_up(&[], &mut finder);
        assert!(names.known.is_empty());
    }
}
