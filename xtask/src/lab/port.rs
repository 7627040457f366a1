//! Reads the guest's ports: streams up to a marker, and the status.

use std::time::SystemTime;

use anyhow::{Result, bail};

/// Reads what `init.sh` says on the status port: `started`, again after each reboot, then
/// `exit STATUS files SIZE`.
pub(super) fn parse_status(text: &[u8]) -> Result<Option<(i32, usize)>> {
    let text = String::from_utf8_lossy(text);
    let Some(line) = text
        .strip_prefix("started\n")
        .map(|rest| rest.trim_start_matches("started\n"))
        .and_then(|rest| rest.strip_suffix('\n'))
    else {
        return Ok(None);
    };
    let words: Vec<&str> = line.split(' ').collect();
    if let ["exit", status, "files", size] = words.as_slice()
        && let (Ok(status), Ok(size)) = (status.parse(), size.parse())
    {
        return Ok(Some((status, size)));
    }
    bail!("the guest's init said {line:?} on the status port")
}

/// A stream up to a marker, which may arrive in pieces.
pub(super) struct Marked {
    marker: Vec<u8>,
    pub(super) seen: Vec<u8>,
    /// How much of `seen` was handed out; the rest may start the marker.
    handed: usize,
    pub(super) ended: bool,
}

impl Marked {
    pub(super) fn new(marker: &str) -> Self {
        Self {
            marker: marker.into(),
            seen: Vec::new(),
            handed: 0,
            ended: false,
        }
    }

    /// What these bytes add before the marker. What follows it is not the
    /// command's but of processes that it left behind.
    pub(super) fn push(&mut self, bytes: &[u8]) -> &[u8] {
        if self.ended {
            return &[];
        }
        let from = self.handed;
        self.seen.extend(bytes);
        let fresh = &self.seen[from..];
        let marker = self.marker.as_slice();
        let at = fresh
            .windows(marker.len())
            .position(|window| window == marker);
        self.handed += match at {
            Some(at) => at,
            None if bytes.is_empty() => fresh.len(),
            None => {
                let held = (1..marker.len().min(fresh.len() + 1))
                    .rev()
                    .find(|&n| fresh.ends_with(&marker[..n]));
                fresh.len() - held.unwrap_or(0)
            }
        };
        if at.is_some() {
            self.ended = true;
            self.seen.truncate(self.handed);
        }
        &self.seen[from..self.handed]
    }
}

/// No program writes this by chance.
pub(super) fn end_marker() -> String {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    format!("\x1e end of {}.{} \x1e", std::process::id(), now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_ends_at_its_marker_however_it_arrives() {
        let whole = b"one\ntwo#END#rest";
        for size in 1..whole.len() {
            let mut stream = Marked::new("#END#");
            let mut got: Vec<u8> = Vec::new();
            for piece in whole.chunks(size) {
                got.extend(stream.push(piece));
            }
            assert_eq!(got, b"one\ntwo", "in pieces of {size}");
            assert!(stream.ended);
            assert_eq!(stream.seen, b"one\ntwo");
        }
    }

    #[test]
    fn a_stream_hands_out_all_that_cannot_be_the_marker() {
        let mut stream = Marked::new("#END#");
        assert_eq!(stream.push(b"a#EN"), b"a");
        assert_eq!(stream.push(b"T#"), b"#ENT");
        assert_eq!(stream.push(b""), b"#", "the stream broke off");
        assert!(!stream.ended);
    }

    #[test]
    fn the_status_port_is_read() {
        let read = |text: &str| parse_status(text.as_bytes());
        assert_eq!(read("star").unwrap(), None);
        assert_eq!(read("started\nexit 3 fi").unwrap(), None);
        assert_eq!(
            read("started\nexit 3 files 10240\n").unwrap(),
            Some((3, 10240))
        );
        assert!(read("started\nexit files\n").is_err());
    }
}
