//! A record and its lines for tests.

use std::net::IpAddr;
use std::sync::Arc;

use super::{ClientLine, Record};
use crate::observe::describe::{FileLine, HostLine, LockLine};
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::states::describe::{ClientLine4, StateLine};
use crate::observe::states::info::Info;
use crate::observe::states::{Access, Kind, Standing};
use crate::observe::table::{Mode, Range};

/// Node a's empty record of these VIPs, from second 1.
pub fn record(vips: &[&str]) -> Record {
    let vips = vips.iter().map(|vip| vip.parse().unwrap());
    Record {
        node: "a".into(),
        kernel: "6.1".into(),
        taken_at: 1,
        ..Record::of_clients(vips.collect(), Vec::new())
    }
}

fn host(vip: IpAddr, client: &str, client_name: &str) -> Arc<HostLine> {
    Arc::new(HostLine {
        vip,
        client: client.parse().unwrap(),
        client_name: client_name.into(),
        version: NlmVersion::V4,
        transport: Transport::Tcp,
        netns: 1,
    })
}

/// A client; statd monitors one that has a name.
pub fn client(vip: IpAddr, client: &str, nsm_name: &str) -> ClientLine {
    ClientLine {
        host: host(vip, client, "c"),
        nsm_name: nsm_name.into(),
    }
}

fn file() -> FileLine {
    FileLine {
        dev: "0:30".into(),
        ino: 7,
        fh: "01ff".into(),
        path: Some("/export/file".into()),
    }
}

/// An NFSv3 write lock of c1, 10.77.1.1, with svid 3.
pub fn lock(vip: &str, start: u64, end: u64) -> LockLine {
    LockLine {
        host: host(vip.parse().unwrap(), "10.77.1.1", "c1"),
        svid: 3,
        mode: Mode::Write,
        range: Range { start, end },
        file: Arc::new(file()),
    }
}

/// A state of a 4.1 client, c2 at 10.77.1.2, read and write, through 10.77.0.1.
pub fn state(kind: Kind) -> StateLine {
    StateLine {
        client: ClientLine4 {
            client_id: "0x1".into(),
            number: 1,
            minor: 1,
            client: "10.77.1.2".parse().unwrap(),
            peers: Vec::new(),
            client_name: "Linux NFSv4.1 c2".into(),
            vips: vec!["10.77.0.1".parse().unwrap()],
            vip_unknown: false,
            connections: Some(1),
            info: Info::default(),
        },
        kind,
        standing: Standing::Held,
        access: Access {
            read: true,
            write: true,
        },
        deny: Access::default(),
        ranges: Vec::new(),
        owner: String::new(),
        file: Some(file()),
        stateid: String::new(),
    }
}
