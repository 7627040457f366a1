//! The usual topology: one server, its VIPs, and clients that mount through
//! every one of them.

use std::net::IpAddr;
use std::path::Path;
use std::thread;

use anyhow::{Result, anyhow};
use nlmfo::observe::host::Transport;

use super::client::{Client, Mount};
use super::place::Place;
use super::server::{Filesystem, Server};

/// One server with VIPs and clients.
pub struct Lab {
    pub server: Server,
    pub vips: Vec<IpAddr>,
    pub clients: Vec<MountedClient>,
}

/// A client with one mount per VIP, in the VIPs' order.
pub struct MountedClient {
    pub client: Client,
    pub mounts: Vec<Mount>,
}

impl Lab {
    /// Server in the root network namespace, `clients` clients, each mounting
    /// over TCP through every VIP.
    pub fn up(vips: &[&str], clients: u8) -> Result<Lab> {
        Self::with(Filesystem::Tmpfs, vips, clients)
    }

    /// [`Lab::up`] with an export of this filesystem.
    pub fn with(filesystem: Filesystem, vips: &[&str], clients: u8) -> Result<Lab> {
        let vips = vips
            .iter()
            .map(|vip| vip.parse().map_err(|error| anyhow!("{vip}: {error}")))
            .collect::<Result<Vec<IpAddr>>>()?;
        let server = Server::start_with(filesystem, Place::root(), Path::new("/export"))?;
        for vip in &vips {
            server.add_vip(*vip)?;
        }
        let clients = thread::scope(|scope| {
            let (server, vips) = (&server, &vips);
            let joining: Vec<_> = (1..=clients)
                .map(|number| scope.spawn(move || MountedClient::join(server, number, vips)))
                .collect();
            joining
                .into_iter()
                .map(|thread| thread.join().expect("joining does not panic"))
                .collect::<Result<Vec<_>>>()
        })?;
        Ok(Lab {
            server,
            vips,
            clients,
        })
    }
}

impl MountedClient {
    fn join(server: &Server, number: u8, vips: &[IpAddr]) -> Result<MountedClient> {
        let client = Client::join(server, number)?;
        let mounts = vips
            .iter()
            .map(|vip| client.mount(server, *vip, Transport::Tcp))
            .collect::<Result<_>>()?;
        Ok(MountedClient { client, mounts })
    }
}
