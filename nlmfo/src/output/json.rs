//! JSON as it is written: on one line, with every character escaped that would not be shown
//! as it is. (JSON itself asks for that of the first 32 only.)

use std::io::{self, Write};

use serde::{Serialize, Serializer};
use serde_json::ser::Formatter;

use crate::foreign::is_visible;

/// One object and a newline.
pub fn write(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    write_value(out, value)?;
    out.write_all(b"\n")
}

fn write_value(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    let mut serializer = serde_json::Serializer::with_formatter(out, Visible);
    Ok(value.serialize(&mut serializer)?)
}

/// A value as [`write`] writes it, for [`Rendered`].
pub fn text(value: &impl Serialize) -> io::Result<String> {
    let mut text = Vec::new();
    write_value(&mut text, value)?;
    String::from_utf8(text).map_err(io::Error::other)
}

/// JSON that is there already. [`write`] copies it; other serializers cannot.
pub struct Rendered<'a>(pub &'a str);

impl Serialize for Rendered<'_> {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_bytes(self.0.as_bytes())
    }
}

/// Visible, in ASCII.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, b' '..=b'~')
}

struct Visible;

impl Formatter for Visible {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        text: &str,
    ) -> io::Result<()> {
        // Nearly every text is; this is half of what a listing takes.
        if text.bytes().fold(true, |all, byte| all & is_plain(byte)) {
            return out.write_all(text.as_bytes());
        }
        let mut from = 0;
        for (at, c) in text.char_indices().filter(|(_, c)| !is_visible(*c)) {
            out.write_all(&text.as_bytes()[from..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}")?;
            }
            from = at + c.len_utf8();
        }
        out.write_all(&text.as_bytes()[from..])
    }

    /// Only [`Rendered`] is bytes: JSON itself has none.
    fn write_byte_array<W: ?Sized + Write>(&mut self, out: &mut W, json: &[u8]) -> io::Result<()> {
        out.write_all(json)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_value_comes_back_and_nothing_raw_is_in_the_text() {
        let value = "é\u{9b}a\u{7f}\n\"\\\u{2028}\u{202e}✓";
        let mut text = Vec::new();
        write(&mut text, &value).unwrap();
        let text = String::from_utf8(text).unwrap();
        assert_eq!(text, "\"é\\u009ba\\u007f\\n\\\"\\\\\\u2028\\u202e✓\"\n");
        assert_eq!(serde_json::from_str::<String>(&text).unwrap(), value);
    }
}
