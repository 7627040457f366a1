//! The text of a book's file: a line for each change, the first one the head.
//!
//! A line is the CRC-32 (IEEE) of what follows in eight hexadecimal digits, a blank, and
//! one JSON object without line breaks:
//!
//! ```text
//! 5d41a2c0 {"schema":"nlmfo.book/1","vip":"10.77.0.1","term":3,"node":"a","since":1795430000}
//! 0a9bc3f1 {"client":{"client":"10.77.0.11","name":"c1","version":4,"transport":"tcp",…}}
//! 77e81290 {"forgotten":{"client":"10.77.0.11"}}
//! c1d2e3f4 "complete"
//! ```
//!
//! `client` replaces what earlier lines say about a client; `forgotten` means that an address is no
//! longer a client; `complete` means that this file contains everything of the earlier terms that still
//! holds.

use std::borrow::Cow;
use std::io::Write;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{Client, Owner};

pub const SCHEMA: &str = "nlmfo.book/1";

/// The first line of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub schema: Cow<'static, str>,
    pub vip: IpAddr,
    #[serde(flatten)]
    pub owner: Owner,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Client(Client),
    Forgotten { client: IpAddr },
    Complete,
}

/// Digits of the checksum, and the blank.
const PREFIX: usize = 9;

/// Appends the line of a value, with its line break.
pub fn encode(value: &impl Serialize, out: &mut Vec<u8>) {
    let json = serde_json::to_vec(value).expect("strings and numbers");
    write!(out, "{:08x} ", crc32fast::hash(&json)).expect("writing to memory");
    out.extend_from_slice(&json);
    out.push(b'\n');
}

/// The JSON of a line without its line break; none if the checksum is wrong.
pub fn checked(line: &[u8]) -> Option<&[u8]> {
    let (prefix, json) = line.split_at_checked(PREFIX)?;
    let digits = std::str::from_utf8(prefix.strip_suffix(b" ")?).ok()?;
    (u32::from_str_radix(digits, 16).ok()? == crc32fast::hash(json)).then_some(json)
}

/// Whether a line looks like a [`Line::Client`], even if it is incomplete.
pub fn is_of_client(line: &[u8]) -> bool {
    (line.get(PREFIX..)).is_some_and(|json| json.starts_with(b"{\"client\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written_or_not_at_all() {
        let line = Line::Forgotten {
            client: "fd77::11".parse().unwrap(),
        };
        let mut text = Vec::new();
        encode(&line, &mut text);
        assert_eq!(text.pop(), Some(b'\n'));
        let json = checked(&text).unwrap();
        assert_eq!(serde_json::from_slice::<Line>(json).unwrap(), line);
        for end in 0..text.len() {
            assert_eq!(checked(&text[..end]), None, "cut at {end}");
        }
        for at in 0..text.len() {
            let mut flipped = text.clone();
            flipped[at] ^= 0x10;
            // The same number in other letters is the same checksum.
            let same = at < 8 && flipped[at].eq_ignore_ascii_case(&text[at]);
            assert_eq!(checked(&flipped).is_some(), same, "flipped at {at}");
        }
    }
}
