//! Types of one kind by name: a kernel has some ten thousand structs and sixty thousand
//! functions, and a layout asks for a hundred of them.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::OnceLock;

use super::Btf;

/// The ids of a blob's own types of one kind.
#[derive(Debug, Default)]
pub(super) struct Names {
    ids: Vec<u32>,
    /// Built by the first lookup: (hash of the name, id), ascending.
    by_hash: OnceLock<Vec<(u64, u32)>>,
}

impl Names {
    /// `id` must be larger than all before it.
    pub fn push(&mut self, id: u32) {
        self.ids.push(id);
    }

    /// The ids of that name, ascending; `of` is the blob.
    pub fn find<'a>(&'a self, of: &'a Btf, name: &'a str) -> impl Iterator<Item = u32> + 'a {
        let by_hash = self.by_hash.get_or_init(|| {
            let hashed = self.ids.iter().map(|&id| {
                let rest = of.rest_from_name(id);
                let end = memchr::memchr(0, rest).unwrap_or(rest.len());
                (hash(&rest[..end]), id)
            });
            let mut hashed: Vec<_> = hashed.collect();
            hashed.sort_unstable();
            hashed
        });
        let wanted = hash(name.as_bytes());
        let first = by_hash.partition_point(|&(hash, _)| hash < wanted);
        (by_hash[first..].iter())
            .take_while(move |(hash, _)| *hash == wanted)
            .map(|&(_, id)| id)
            .filter(move |&id| {
                let rest = of.rest_from_name(id).strip_prefix(name.as_bytes());
                rest.is_some_and(|rest| rest.first() == Some(&0))
            })
    }
}

fn hash(name: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    name.hash(&mut hasher);
    hasher.finish()
}
