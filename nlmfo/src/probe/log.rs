//! The kernel's log: what it says of its own faults.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

const KMSG: &str = "/dev/kmsg";

/// More than a record of the log can be (`CONSOLE_EXT_LOG_MAX`, 8192 bytes).
const RECORD: usize = 16 << 10;

/// What a kernel says when something is wrong with it, or with lockd's hosts.
const COMPLAINTS: &[&str] = &[
    "WARNING: ",
    "BUG: ",
    "Oops",
    "UBSAN: ",
    "general protection fault",
    "refcount_t: ",
    "lockd: couldn't shutdown host module",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Counts every line since boot.
    pub number: u64,
    pub text: String,
}

/// Every line that the kernel still has; none where the log cannot be read.
pub fn lines() -> Vec<Line> {
    let log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(KMSG);
    let Ok(mut log) = log else { return Vec::new() };
    let mut lines = Vec::new();
    let mut record = vec![0; RECORD];
    loop {
        // One record a read (Documentation/ABI/testing/dev-kmsg).
        match log.read(&mut record) {
            Ok(0) => return lines,
            Ok(length) => lines.extend(parse(&String::from_utf8_lossy(&record[..length]))),
            // Overwritten while we read: the next read goes on with what there is.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return lines,
        }
    }
}

/// `priority,number,time,flags;text`, and then lines of other matters.
fn parse(record: &str) -> Option<Line> {
    let (head, rest) = record.split_once(';')?;
    Some(Line {
        number: head.split(',').nth(1)?.parse().ok()?,
        text: rest.lines().next()?.to_owned(),
    })
}

/// The kernel's complaints after that line.
pub fn complaints(lines: Vec<Line>, after: Option<u64>) -> Vec<String> {
    lines
        .into_iter()
        .filter(|line| after.is_none_or(|after| line.number > after))
        .filter(|line| COMPLAINTS.iter().any(|words| line.text.contains(words)))
        .map(|line| format!("the kernel logged: {}", line.text))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_complaints_are_told() {
        let records = [
            "4,100,12345,-;WARNING: CPU: 0 PID: 1 at fs/lockd/host.c:1\n",
            "6,101,12346,-;NFSD: starting 90-second grace period\n SUBSYSTEM=x\n",
            "4,102,12347,-;WARNING: CPU: 1 PID: 9 at fs/lockd/host.c:2\n",
        ];
        let lines: Vec<Line> = records.iter().filter_map(|record| parse(record)).collect();
        assert_eq!(
            complaints(lines, Some(100)),
            ["the kernel logged: WARNING: CPU: 1 PID: 9 at fs/lockd/host.c:2"]
        );
    }
}
