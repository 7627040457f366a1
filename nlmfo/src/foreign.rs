//! Names that others chose: file names, client names, statd's names, and node names in records,
//! books and recordings.
//! A name is a sequence of bytes. Terminal, JSON, log and dashboard show it as the same text:
//! control characters, characters that change the text direction, bytes that are not UTF-8, and
//! backslashes are escaped as in bash's `$'…'`. The text can be converted back to the bytes, so a
//! record carries names unchanged between nodes.

use std::borrow::Cow;
use std::ffi::OsStr;
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Maximum length of a name read from a file, in bytes. The
/// kernel's own names have at most 1024 (`NLM_MAXSTRLEN`), its paths 4096; a path that a
/// search put together may be longer.
const LONGEST: usize = 64 * 1024;

/// Marks a name of which only the beginning is known. It cannot be part of a name, where a
/// backslash is followed by another one or by an escape.
const CUT: &str = "\\…(cut)";

/// Bytes that another party chose, shown escaped.
#[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    bytes: Vec<u8>,
    is_cut: bool,
}

impl Name {
    /// The beginning of a name that was too long to store.
    pub fn cut(bytes: &[u8]) -> Self {
        Name {
            bytes: bytes.to_vec(),
            is_cut: true,
        }
    }

    /// A C string in an array that may have truncated it.
    pub fn from_c(array: &[u8]) -> Self {
        match array.iter().position(|&byte| byte == 0) {
            Some(end) => Name::from(&array[..end]),
            None => Name::cut(array),
        }
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether only its beginning is known.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }
}

impl From<&[u8]> for Name {
    fn from(bytes: &[u8]) -> Self {
        Name {
            bytes: bytes.to_vec(),
            is_cut: false,
        }
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        Name::from(text.as_bytes())
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Name {
            bytes: text.into_bytes(),
            is_cut: false,
        }
    }
}

impl From<&OsStr> for Name {
    fn from(name: &OsStr) -> Self {
        Name::from(name.as_bytes())
    }
}

impl From<&Path> for Name {
    fn from(path: &Path) -> Self {
        Name::from(path.as_os_str())
    }
}

impl From<PathBuf> for Name {
    fn from(path: PathBuf) -> Self {
        Name::from(path.as_path())
    }
}

/// The name itself, unescaped.
impl PartialEq<str> for Name {
    fn eq(&self, text: &str) -> bool {
        !self.is_cut && self.bytes == text.as_bytes()
    }
}

impl PartialEq<&str> for Name {
    fn eq(&self, text: &&str) -> bool {
        *self == **text
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = escaped(&self.bytes);
        match self.is_cut {
            true => f.pad(&format!("{shown}{CUT}")),
            false => f.pad(&shown),
        }
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        match self.is_cut {
            true => out.collect_str(self),
            false => out.serialize_str(&escaped(&self.bytes)),
        }
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Text;
        impl Visitor<'_> for Text {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Name, E> {
                let (text, is_cut) = match text.strip_suffix(CUT) {
                    Some(beginning) => (beginning, true),
                    None => (text, false),
                };
                let bytes = unescaped(text);
                if bytes.len() > LONGEST {
                    return Err(E::custom(format_args!(
                        "a name of {} bytes, where at most {LONGEST} are possible",
                        bytes.len()
                    )));
                }
                Ok(Name { bytes, is_cut })
            }
        }
        from.deserialize_str(Text)
    }
}

/// Reads a field that contains a [`Name`] as shown, and escapes it again.
pub fn text<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    Name::deserialize(from).map(|name| name.to_string())
}

/// [`text`] for a field that may be null.
pub fn some_text<'de, D: Deserializer<'de>>(from: D) -> Result<Option<String>, D::Error> {
    let name = Option::<Name>::deserialize(from)?;
    Ok(name.map(|name| name.to_string()))
}

/// Shows a path like a [`Name`].
pub trait Shown {
    fn shown(&self) -> Name;
}

impl<T: AsRef<OsStr> + ?Sized> Shown for T {
    fn shown(&self) -> Name {
        Name::from(self.as_ref())
    }
}

/// Whether a character is shown unescaped: it does not move the cursor, end a line or change the
/// text direction.
pub fn is_visible(c: char) -> bool {
    !(c.is_control()
        || matches!(
            c,
            '\u{2028}' | '\u{2029}' | '\u{61c}' | '\u{200e}' | '\u{200f}'
        )
        || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'))
}

/// The bytes as text that can be converted back.
pub fn escaped(bytes: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = std::str::from_utf8(bytes)
        && text.chars().all(|c| c != '\\' && is_visible(c))
    {
        return Cow::Borrowed(text);
    }
    let mut text = String::with_capacity(bytes.len() + 8);
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                c if is_visible(c) => text.push(c),
                c => escape(c, &mut text),
            }
        }
        for byte in chunk.invalid() {
            escape_byte(*byte, &mut text);
        }
    }
    Cow::Owned(text)
}

/// Puts text that is escaped already, or our own, on one line: escapes only what must not reach
/// a terminal.
pub fn on_one_line(text: &str) -> Cow<'_, str> {
    if text.chars().all(is_visible) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match is_visible(c) {
            true => safe.push(c),
            false => escape(c, &mut safe),
        }
    }
    Cow::Owned(safe)
}

/// Appends the escape of a character.
pub fn escape(c: char, text: &mut String) {
    match c {
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        c => {
            for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                escape_byte(byte, text);
            }
        }
    }
}

fn escape_byte(byte: u8, text: &mut String) {
    // Writing to a string cannot fail.
    let _ = write!(text, "\\x{byte:02x}");
}

/// The inverse of [`escaped`]. A backslash that begins no escape is kept.
pub fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let (byte, used) = match (first, after) {
            (b'\\', [b'\\', ..]) => (b'\\', 2),
            (b'\\', [b'n', ..]) => (b'\n', 2),
            (b'\\', [b'r', ..]) => (b'\r', 2),
            (b'\\', [b't', ..]) => (b'\t', 2),
            (b'\\', [b'x', high, low, ..]) => match (digit(*high), digit(*low)) {
                (Some(high), Some(low)) => (high << 4 | low, 4),
                _ => (first, 1),
            },
            _ => (first, 1),
        };
        bytes.push(byte);
        rest = &rest[used..];
    }
    bytes
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_could_forge_a_line_is_escaped() {
        for (name, shown) in [
            (&b"caf\xc3\xa9"[..], "café"),
            (b"caf\xe9", "caf\\xe9"),
            (b"x\n\xe2\x9c\x93 confirmed", "x\\n✓ confirmed"),
            (b"\x1b[2J\r\t\x7f", "\\x1b[2J\\r\\t\\x7f"),
            ("\u{9b}2J".as_bytes(), "\\xc2\\x9b2J"),
            (
                "a\u{2028}b\u{2029}".as_bytes(),
                "a\\xe2\\x80\\xa8b\\xe2\\x80\\xa9",
            ),
            (
                "\u{202e}gnp.exe\u{2066}".as_bytes(),
                "\\xe2\\x80\\xaegnp.exe\\xe2\\x81\\xa6",
            ),
            ("\u{61c}\u{200e}".as_bytes(), "\\xd8\\x9c\\xe2\\x80\\x8e"),
            (b"C:\\new", "C:\\\\new"),
        ] {
            assert_eq!(Name::from(name).to_string(), shown);
        }
    }

    #[test]
    fn a_name_that_was_cut_says_so_and_no_other_looks_so() {
        let cut = Name::from_c(b"abc");
        assert_eq!(cut.to_string(), "abc\\…(cut)");
        assert_eq!(Name::from_c(b"abc\0def").to_string(), "abc");
        let json = serde_json::to_string(&cut).unwrap();
        assert_eq!(serde_json::from_str::<Name>(&json).unwrap(), cut);
        let forged = Name::from("abc\\…(cut)");
        assert_ne!(forged.to_string(), cut.to_string());
    }

    #[test]
    fn a_name_of_five_megabytes_is_an_error() {
        let json = serde_json::to_string(&"a".repeat(5 << 20)).unwrap();
        let error = serde_json::from_str::<Name>(&json).unwrap_err().to_string();
        assert!(error.contains("5242880 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn every_name_comes_back_and_shows_nothing_but_text(
            bytes in proptest::collection::vec(any::<u8>(), 0..60)
        ) {
            let name = Name::from(&bytes[..]);
            let json = serde_json::to_string(&name).unwrap();
            prop_assert_eq!(&serde_json::from_str::<Name>(&json).unwrap(), &name);
            prop_assert!(name.to_string().chars().all(is_visible));
        }

        #[test]
        fn every_text_comes_back(text in ".*") {
            let shown = escaped(text.as_bytes()).into_owned();
            prop_assert_eq!(unescaped(&shown), text.as_bytes());
        }
    }
}
