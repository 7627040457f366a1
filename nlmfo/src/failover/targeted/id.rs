//! The ID of a row of `nlmfo locks`: made of what the kernel calls the lock, so that it stays
//! the same as long as the lock does, and another lock has another one.

use std::fmt::{self, Write};
use std::hash::Hasher;
use std::str::FromStr;

use fnv::FnvHasher;
use serde::{Serialize, Serializer};

use crate::failover::evidence::{Item, What};
use crate::observe::host::Host;
use crate::observe::states::{Nfs4Client, State, Waiter4};
use crate::observe::table::{Mode, Range};

/// 48 bits. Rows with the same ID cannot be told apart, and none of them is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId(u64);

const DIGITS: usize = 12;

/// Computes the IDs of NFSv3 rows. Keeps the hash of the last host, since successive rows often have
/// the same.
#[derive(Clone, Default)]
pub struct RowIds(Option<(Host, Hash)>);

impl RowIds {
    /// Of a lock, waiter or share.
    pub fn of(&mut self, item: &Item) -> RowId {
        let (host, file) = (item.host, item.file);
        let of_host = match self.0 {
            Some((known, hash)) if known == host => hash,
            _ => Hash::default().with(format_args!("{} {host}", host.netns)),
        };
        self.0 = Some((host, of_host));
        let hash = match &item.what {
            What::Lock { svid, mode, range } => {
                of_host.with_request(file, "lock", *svid, *mode, *range)
            }
            What::Waiter { svid, mode, range } => {
                of_host.with_request(file, "waiter", *svid, *mode, *range)
            }
            What::Share {
                owner,
                access,
                deny,
            } => of_host.with(format_args!(" {file:?} share {access} {deny} {owner:02x?}")),
        };
        RowId::from(hash)
    }
}

impl RowId {
    /// Of a lock, waiter or share of NFSv3.
    pub fn of(item: &Item) -> RowId {
        RowIds::default().of(item)
    }

    /// Of an NFSv4 state, or one range of it. The stateid's generation counts the client's
    /// calls, and is not included.
    pub fn of_state(client: &Nfs4Client, state: &State, range: Option<(Mode, Range)>) -> RowId {
        let (client, kind, id) = (client.id_text(), state.kind, &state.id[4..]);
        let place = format_args!("nfs4 {client} {kind} {id:02x?} ");
        match range {
            None => RowId::hash(place),
            Some((mode, range)) => RowId::hash(format_args!("{place}lock 0 {mode} {range}")),
        }
    }

    /// Of a waiting NFSv4 request. The owner is not included: the client may repeat the request as
    /// another owner. If several of its owners wait for the same range, their rows have the same ID.
    pub fn of_waiter4(client: &Nfs4Client, waiter: &Waiter4) -> RowId {
        let Waiter4 {
            file, mode, range, ..
        } = waiter;
        let (client, file) = (client.id_text(), (file.major, file.minor, file.ino));
        RowId::hash(format_args!(
            "nfs4 {client} {file:?} waiter 0 {mode} {range}"
        ))
    }

    fn hash(text: fmt::Arguments) -> RowId {
        Hash::default().with(text).into()
    }
}

impl From<Hash> for RowId {
    fn from(Hash(hash): Hash) -> Self {
        RowId((hash >> 16) ^ (hash & 0xffff))
    }
}

/// The hash of a text, computed piece by piece.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    /// Of the text with more at its end.
    fn with(mut self, text: fmt::Arguments) -> Self {
        // It takes everything.
        let _ = self.write_fmt(text);
        self
    }

    /// The same as [`Hash::with`] of ` {file:?} {kind} {svid} {mode} {range}`, in a third of the
    /// time: nearly all rows are such.
    fn with_request(
        self,
        (major, minor, ino): (u32, u32, u64),
        kind: &str,
        svid: u32,
        mode: Mode,
        range: Range,
    ) -> Self {
        let hash = (self.with_text(" (").with_number(major))
            .with_text(", ")
            .with_number(minor)
            .with_text(", ")
            .with_number(ino)
            .with_text(") ")
            .with_text(kind)
            .with_text(" ")
            .with_number(svid)
            .with_text(" ")
            .with_text(mode.name())
            .with_text(" ")
            .with_number(range.start)
            .with_text("-");
        match range.end {
            Range::EOF => hash.with_text("EOF"),
            end => hash.with_number(end),
        }
    }

    fn with_number(self, number: impl itoa::Integer) -> Self {
        self.with_text(itoa::Buffer::new().format(number))
    }

    fn with_text(self, text: &str) -> Self {
        let mut hasher = FnvHasher::with_key(self.0);
        hasher.write(text.as_bytes());
        Hash(hasher.finish())
    }
}

impl Default for Hash {
    fn default() -> Self {
        Hash(FnvHasher::default().finish())
    }
}

impl Write for Hash {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        *self = self.with_text(text);
        Ok(())
    }
}

impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:0DIGITS$x}", self.0)
    }
}

impl FromStr for RowId {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_digit = |byte: u8| byte.is_ascii_hexdigit() && !byte.is_ascii_uppercase();
        if text.len() != DIGITS || !text.bytes().all(is_digit) {
            return Err("give the 12 hexadecimal digits that `nlmfo locks` shows");
        }
        u64::from_str_radix(text, 16)
            .map(RowId)
            .map_err(|_| "this is not a number")
    }
}

impl Serialize for RowId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::observe::host::Host;

    fn item(svid: u32, end: u64) -> Item {
        Item {
            host: Host::sample([10, 77, 0, 1], [10, 77, 0, 11]),
            file: (0, 1, 9),
            what: What::Lock {
                svid,
                mode: Mode::Write,
                range: Range { start: 0, end },
            },
        }
    }

    /// Operators write IDs down: another nlmfo must show the same.
    #[test]
    fn an_id_is_the_same_for_ever() {
        assert_eq!(RowId::of(&item(7, 9)).to_string(), "8ff94a10cf6a");
    }

    #[test]
    fn an_id_is_the_hash_of_what_the_lock_is_called() {
        for end in [9, Range::EOF, u64::MAX] {
            let item = item(7, end);
            let What::Lock { svid, mode, range } = item.what else {
                panic!()
            };
            let (host, file) = (item.host, item.file);
            let lock = format_args!("1 {host} {file:?} lock {svid} {mode} {range}");
            assert_eq!(RowId::of(&item), RowId::hash(lock));
        }
    }

    #[test]
    fn another_owner_range_or_kind_has_another_id() {
        let id = RowId::of(&item(7, 9));
        assert_ne!(id, RowId::of(&item(8, 9)));
        assert_ne!(id, RowId::of(&item(7, 10)));
        let What::Lock { svid, mode, range } = item(7, 9).what else {
            panic!()
        };
        let waiter = Item {
            what: What::Waiter { svid, mode, range },
            ..item(7, 9)
        };
        assert_ne!(id, RowId::of(&waiter));
    }

    #[test]
    fn only_what_is_shown_is_read_back() {
        let id = RowId::of(&item(7, 9));
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "1", "00000000000g", "00000000000A", "+00000000001"] {
            assert!(wrong.parse::<RowId>().is_err(), "{wrong}");
        }
    }
}
