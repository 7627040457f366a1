//! Filters text for a terminal or a file.

use std::fmt;
use std::io::{self, BufWriter, Write};

use super::stream::Stream;
use crate::foreign::{escape, is_visible};

/// Writes text without characters that move the cursor or change the text direction. Names are
/// escaped already; this is for other text, such as a parser's error that quotes its input.
pub struct Text {
    out: BufWriter<Stream>,
    ascii: bool,
    error: Option<io::Error>,
}

impl Text {
    pub fn new(stream: Stream) -> Self {
        Text {
            out: BufWriter::new(stream),
            ascii: !is_utf8(),
            error: None,
        }
    }

    /// Writes the rest and returns whether all text was written.
    pub fn finish(mut self) -> io::Result<()> {
        match self.error.take() {
            Some(error) => {
                // What is left would be tried again.
                let (_stream, _lost) = self.out.into_parts();
                Err(error)
            }
            None => self.out.flush(),
        }
    }
}

impl fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if self.error.is_some() {
            return Err(fmt::Error);
        }
        let written = self.out.write_all(safe(text, self.ascii).as_bytes());
        written.map_err(|error| {
            self.error = Some(error);
            fmt::Error
        })
    }
}

/// Keeps newlines and tabs.
pub fn safe(text: &str, ascii: bool) -> std::borrow::Cow<'_, str> {
    let is_fine = |c: char| {
        matches!(c, '\n' | '\t')
            || if ascii {
                matches!(c, ' '..='~')
            } else {
                is_visible(c)
            }
    };
    if text.chars().all(is_fine) {
        return text.into();
    }
    let mut safe = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            c if is_fine(c) => safe.push(c),
            '✓' => safe.push_str("ok"),
            '✗' => safe.push_str("!!"),
            '…' => safe.push_str("..."),
            '–' | '—' => safe.push('-'),
            'µ' => safe.push('u'),
            '≥' => safe.push_str(">="),
            c => escape(c, &mut safe),
        }
    }
    safe.into()
}

/// Whether the locale is UTF-8. Without a locale, as under a cluster manager, the output goes to
/// a log and is UTF-8.
pub fn is_utf8() -> bool {
    is_utf8_in(|name| std::env::var_os(name))
}

fn is_utf8_in(get: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| get(name).filter(|value| !value.is_empty()));
    set.is_none_or(|locale| {
        let locale = locale.to_string_lossy().to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}

/// Whether the terminal can position the cursor.
pub fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moves_a_cursor_is_not_written() {
        assert_eq!(safe("✓ a\tb\n", false), "✓ a\tb\n");
        assert_eq!(
            safe("\x1b[2J\u{9b}\r\u{202e}", false),
            "\\x1b[2J\\xc2\\x9b\\r\\xe2\\x80\\xae"
        );
    }

    #[test]
    fn without_utf8_nothing_but_ascii_is_written() {
        assert_eq!(safe("✓ é … ✗\n", true), "ok \\xc3\\xa9 ... !!\n");
    }

    #[test]
    fn the_first_variable_that_is_set_says_which_characters_there_are() {
        let of = |all: &[(&str, &str)]| {
            is_utf8_in(|name| {
                let (_, value) = all.iter().find(|(set, _)| *set == name)?;
                Some(value.into())
            })
        };
        assert!(of(&[]) && of(&[("LANG", "de_DE.UTF-8")]) && of(&[("LC_ALL", "C.utf8")]));
        assert!(!of(&[("LANG", "C")]) && !of(&[("LC_ALL", "POSIX"), ("LANG", "C.UTF-8")]));
        assert!(of(&[
            ("LC_ALL", ""),
            ("LC_CTYPE", "en_US.UTF-8"),
            ("LANG", "C")
        ]));
    }
}
