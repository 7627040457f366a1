//! The usual topologies: one server, its VIPs, and clients that mount through
//! every one of them; and two servers of the same VIP.

use std::net::IpAddr;
use std::path::Path;
use std::thread;

use anyhow::{Result, anyhow};
use nlmfo::observe::host::Transport;

use super::client::{Client, HeldLock, Mount};
use super::locker::{Mode, Range};
use super::node::TestNode;
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
        let server = Server::start_with(filesystem, TestNode::root(), Path::new("/export"))?;
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

impl Lab {
    /// One VIP, 10.77.0.1, and a client that holds one lock through it, of a whole
    /// file.
    pub fn with_one_lock() -> Result<(Lab, HeldLock)> {
        let lab = Lab::up(&["10.77.0.1"], 1)?;
        let held = lab.clients[0].lock("held", Range::WHOLE)?;
        Ok((lab, held))
    }
}

/// Two servers of the same VIP, 10.77.0.1, in two network namespaces of one
/// kernel, each with a client that holds one lock through it.
pub struct Twins {
    _locks: [HeldLock; 2],
    _client: MountedClient,
    pub there: Server,
    /// In the root network namespace.
    pub here: Lab,
}

impl Twins {
    /// First byte of the lock here.
    pub const HERE: u64 = 0;
    /// First byte of the lock there.
    pub const THERE: u64 = 5;

    pub fn up() -> Result<Twins> {
        let here = Lab::up(&["10.77.0.1"], 1)?;
        let there = Server::start(TestNode::create("node2")?, Path::new("/export2"))?;
        there.add_vip(here.vips[0])?;
        let client = MountedClient::join(&there, 1, &here.vips)?;
        let locks = [
            here.clients[0].lock("here", Range::new(Self::HERE, 5))?,
            client.lock("there", Range::new(Self::THERE, 5))?,
        ];
        Ok(Twins {
            _locks: locks,
            _client: client,
            there,
            here,
        })
    }
}

impl MountedClient {
    /// Takes a write lock through the first mount, which must be granted.
    pub fn lock(&self, file: &str, range: Range) -> Result<HeldLock> {
        (self.client).lock(&self.mounts[0], file, range, Mode::Write)
    }

    fn join(server: &Server, number: u8, vips: &[IpAddr]) -> Result<MountedClient> {
        let client = Client::join(server, number)?;
        let mounts = vips
            .iter()
            .map(|vip| client.mount(server, *vip, Transport::Tcp))
            .collect::<Result<_>>()?;
        Ok(MountedClient { client, mounts })
    }
}
