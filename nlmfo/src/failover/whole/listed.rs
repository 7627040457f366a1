//! The clients on statd's list: all that is known of NFSv3 clients without a record.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use crate::failover::record::{ClientLine, Record};
use crate::notify::sm::{self, Listed, Monitored};
use crate::observe::describe::HostLine;
use crate::observe::host::{NlmVersion, Transport};

/// What is in statd's directories.
pub fn read(folders: &[PathBuf]) -> Vec<Listed> {
    let read = folders.iter().filter_map(|folder| sm::list(folder).ok());
    read.flatten().collect()
}

/// A record of clients that may hold something through any of these addresses. Looks up the clients'
/// names.
pub async fn record(listed: Vec<Listed>, addresses: &BTreeSet<IpAddr>) -> Record {
    let look_up = || -> Vec<Monitored> { listed.into_iter().map(Listed::look_up).collect() };
    // Looking up names takes time.
    let monitored = tokio::task::spawn_blocking(look_up).await;
    let mut clients = Vec::new();
    let mut vips = BTreeSet::new();
    for monitored in monitored.unwrap_or_default() {
        let Some(client) = monitored.address else {
            continue;
        };
        for &vip in addresses
            .iter()
            .filter(|vip| vip.is_ipv4() == client.is_ipv4())
        {
            vips.insert(vip);
            let name = monitored.name.as_os_str();
            clients.push(ClientLine {
                host: Arc::new(HostLine {
                    vip,
                    client,
                    client_name: name.into(),
                    version: NlmVersion::V4,
                    transport: Transport::Tcp,
                    netns: 0,
                }),
                nsm_name: name.into(),
            });
        }
    }
    Record::of_clients(vips.into_iter().collect(), clients)
}
