//! NFSv3's locks as JSON.

use std::fmt::{Display, Write};

use serde::Serializer;
use serde::ser::{Error, SerializeSeq};

use super::Lines;
use crate::failover::targeted::report::Row;
use crate::observe::table::Range;
use crate::output::{Rendered, json_text};

/// Writes each row as serde would write it, in half the time. Hosts and files are few, so each is
/// rendered once.
pub(super) fn lock_lines<S: Serializer>(lines: &Lines, out: S) -> Result<S::Ok, S::Error> {
    let table = lines.table;
    // Empty until a row needs them.
    let mut hosts = vec![String::new(); table.hosts.len()];
    let mut files = vec![String::new(); table.files.len()];
    let mut text = String::new();
    let mut rows = out.serialize_seq(Some(table.locks.len()))?;
    for (lock, Row { id, line }) in table.locks.iter().zip(lines.locks()) {
        let host = &mut hosts[lock.host.index()];
        if host.is_empty() {
            *host = json_text(&line.host).map_err(S::Error::custom)?;
        }
        let file = &mut files[lock.file.index()];
        if file.is_empty() {
            *file = json_text(&line.file).map_err(S::Error::custom)?;
        }
        let members = &host[1..host.len() - 1];
        let (svid, mode, start) = (lock.svid, lock.mode, lock.range.start);
        let end: &dyn Display = match &lock.range.end {
            &Range::EOF => &"null",
            end => end,
        };
        text.clear();
        write!(
            text,
            r#"{{"id":"{id}",{members},"svid":{svid},"mode":"{mode}","range":{{"start":{start},"end":{end}}},"file":{file}}}"#
        )
        .map_err(S::Error::custom)?;
        rows.serialize_element(&Rendered(&text))?;
    }
    rows.end()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::foreign::Name;
    use crate::kernel::path::PathFinder;
    use crate::observe::behind::Holders;
    use crate::observe::describe::Described;
    use crate::observe::host::Host;
    use crate::observe::table::{FileId, FileInfo, HostId, HostInfo, Lock, LockTable, Mode};
    use serde::Serialize;

    #[derive(Serialize)]
    struct Fast<'a>(#[serde(serialize_with = "lock_lines")] Lines<'a>);

    #[test]
    fn the_rows_are_those_of_their_type() {
        let host = |vip: u8, name: &str| HostInfo {
            key: Host::sample([10, 77, 0, vip], [10, 77, 0, 11]),
            name: Name::from(name),
            nsm_name: Name::default(),
            nsm_priv: [0; 16],
            expires: 0,
        };
        let file = |ino| FileInfo {
            major: 8,
            minor: 1,
            ino,
            fh: vec![1, 2, 0xff],
        };
        let mut table = LockTable {
            hosts: vec![host(1, "c1"), host(2, "}\"\\\u{202e}é\n{")],
            files: vec![file(5), file(6)],
            ..LockTable::default()
        };
        for (n, end) in [9, Range::EOF, u64::MAX].into_iter().enumerate() {
            for (host, mode) in [(0, Mode::Read), (1, Mode::Write)] {
                table.locks.push(Lock {
                    host: HostId(host),
                    file: FileId(host ^ n as u32 & 1),
                    svid: u32::MAX - n as u32,
                    mode,
                    range: Range {
                        start: n as u64,
                        end,
                    },
                });
            }
        }
        let described = Described::new(&table, &mut PathFinder::new(0).unwrap());
        let lines = Lines {
            table: &table,
            described: &described,
            holders: &Holders::default(),
        };
        let rows: Vec<_> = lines.locks().collect();
        assert_eq!(json_text(&Fast(lines)).unwrap(), json_text(&rows).unwrap());
    }
}
