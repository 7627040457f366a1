//! Sample lock tables.

use crate::foreign::Name;
use crate::observe::host::Host;
use crate::observe::table::{
    FileId, FileInfo, HostId, HostInfo, Lock, LockTable, Mode, Range, Share, Waiter,
};

fn host(vip: u8, client: u8) -> HostInfo {
    HostInfo {
        key: Host::sample([10, 77, 0, vip], [10, 77, 0, client]),
        name: format!("c{client}").into(),
        nsm_name: Name::default(),
        nsm_priv: [0; 16],
        expires: 0,
    }
}

fn file(ino: u64) -> FileInfo {
    FileInfo {
        major: 0,
        minor: 40,
        ino,
        fh: ino.to_ne_bytes().to_vec(),
    }
}

fn lock(host: u32, file: u32, start: u64) -> Lock {
    Lock {
        host: HostId(host),
        file: FileId(file),
        svid: host,
        mode: Mode::Write,
        range: Range {
            start,
            end: start + 9,
        },
    }
}

/// The first client holds two ranges of a file, the second waits for the first of them
/// and has a share.
pub fn two_clients_one_file() -> LockTable {
    LockTable {
        hosts: vec![host(1, 11), host(1, 12)],
        files: vec![file(5)],
        locks: vec![lock(0, 0, 0), lock(0, 0, 100)],
        waiters: vec![Waiter {
            host: HostId(1),
            file: FileId(0),
            svid: 7,
            mode: Mode::Read,
            range: Range { start: 9, end: 20 },
            granted: false,
        }],
        shares: vec![Share {
            host: HostId(1),
            file: FileId(0),
            access: 1,
            deny: 2,
            owner: Vec::new(),
        }],
    }
}

/// `vips` with a client that holds `locks`, each of a file of its own.
pub fn many(vips: u8, locks: u64) -> LockTable {
    let mut table = LockTable::default();
    for vip in 1..=vips {
        table.hosts.push(host(vip, 100));
        for _ in 0..locks {
            let place = table.files.len() as u32;
            table.files.push(file(u64::from(place) + 2));
            table.locks.push(lock(u32::from(vip) - 1, place, 0));
        }
    }
    table
}
