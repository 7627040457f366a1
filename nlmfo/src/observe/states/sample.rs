//! A client and a state for tests.

use super::info::Info;
use super::{Access, Kind, Nfs4Client, Standing, State};

/// A client of 4.1 at 10.77.1.1 that has a connection to each of the VIPs.
pub fn client(vips: &[&str]) -> Nfs4Client {
    Nfs4Client {
        number: 3,
        id: [1, 2],
        minor: 1,
        name: "Linux NFSv4.1 c1".into(),
        address: [10, 77, 1, 1].into(),
        peers: Vec::new(),
        vips: vips.iter().map(|vip| vip.parse().unwrap()).collect(),
        vip_unknown: vips.is_empty(),
        connections: Some(vips.len()),
        has_reclaimed: false,
        info: Info::default(),
    }
}

/// A state of the client with this index, without a file or range.
pub fn state(client: usize, kind: Kind) -> State {
    State {
        client,
        kind,
        standing: Standing::Held,
        access: Access::default(),
        deny: Access::default(),
        file: None,
        owner: Vec::new(),
        ranges: Vec::new(),
        id: [0; 16],
    }
}
