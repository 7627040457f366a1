//! Byte ranges as clients ask for them.

use serde::{Deserialize, Serialize};

/// A byte range; `len` 0 is to the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Range {
    /// The whole file.
    pub const WHOLE: Range = Range { start: 0, len: 0 };

    /// `len` bytes from `start` on.
    pub const fn new(start: u64, len: u64) -> Range {
        Range { start, len }
    }

    /// The last byte, inclusive, as `/proc/locks` shows it; `None` is the end
    /// of the file.
    pub fn end(self) -> Option<u64> {
        (self.len > 0).then(|| self.start + self.len - 1)
    }
}
