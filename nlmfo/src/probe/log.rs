//! The kernel's log: what it says of its own faults.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

const KMSG: &str = "/dev/kmsg";

/// More than a record of the log can be (`CONSOLE_EXT_LOG_MAX`, 8192 bytes).
const RECORD: usize = 16 << 10;

/// Messages of a kernel that has found a fault in itself.
pub const FAULTS: &[&str] = &[
    "WARNING: ",
    "BUG: ",
    "Oops",
    "UBSAN: ",
    "general protection fault",
    "refcount_t: ",
];

/// What lockd says when it stops serving a network namespace and hosts are in use there
/// (`nlm_shutdown_hosts_net`, fs/lockd/host.c, 6.1 to 6.12).
pub const HOSTS_IN_USE: &[&str] = &["lockd: couldn't shutdown host module"];

/// A line of the kernel's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Counts every line since boot.
    pub number: u64,
    pub text: String,
}

/// Every line of the kernel's own that it still has; none where the log cannot be read.
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
            // Records were overwritten while we read: the next read continues with the oldest one left.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(_) => return lines,
        }
    }
}

/// `priority,number,time,flags;text`, and then lines of other matters.
fn parse(record: &str) -> Option<Line> {
    let (head, rest) = record.split_once(';')?;
    let mut head = head.split(',');
    let priority: u32 = head.next()?.parse().ok()?;
    // From 8 on, the line is from a program, not the kernel.
    if priority >= 8 {
        return None;
    }
    Some(Line {
        number: head.next()?.parse().ok()?,
        text: rest.lines().next()?.to_owned(),
    })
}

/// The number of the last line.
pub fn last() -> Option<u64> {
    lines().last().map(|line| line.number)
}

/// The lines after that one in which any of the words stand.
pub fn complaints(lines: Vec<Line>, after: Option<u64>, words: &[&str]) -> Vec<String> {
    lines
        .into_iter()
        .filter(|line| after.is_none_or(|after| line.number > after))
        .filter(|line| words.iter().any(|words| line.text.contains(words)))
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
            "12,102,12347,-;WARNING: of a program's\n",
            "4,103,12347,-;WARNING: CPU: 1 PID: 9 at fs/lockd/host.c:2\n",
        ];
        let lines: Vec<Line> = records.iter().filter_map(|record| parse(record)).collect();
        assert_eq!(
            complaints(lines, Some(100), FAULTS),
            ["the kernel logged: WARNING: CPU: 1 PID: 9 at fs/lockd/host.c:2"]
        );
    }
}
