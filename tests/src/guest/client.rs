//! A Linux NFSv3 client: namespaces of its own on the server's bridge, mounts
//! through chosen server addresses, and lockers.

use std::env;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nlmfo::observe::host::Transport;

use super::busy::{Busy, PACE, Wanted};
use super::command::run;
use super::locker::{Locker, Mode, Outcome, Range};
use super::node::TestNode;
use super::server::{BRIDGE, MOUNTD_PORT, Server, start_rpc};

/// The netid that `mount -o proto=` and rpcbind use.
pub fn netid(transport: Transport, address: IpAddr) -> &'static str {
    match (transport, address) {
        (Transport::Tcp, IpAddr::V4(_)) => "tcp",
        (Transport::Tcp, IpAddr::V6(_)) => "tcp6",
        (Transport::Udp, IpAddr::V4(_)) => "udp",
        (Transport::Udp, IpAddr::V6(_)) => "udp6",
    }
}

/// A client on a server's bridge.
pub struct Client {
    node: TestNode,
    number: u8,
    mounts: Mutex<Vec<PathBuf>>,
}

/// The client's address number `n` on IPv4.
pub fn v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 1, number)
}

/// The client's address number `n` on IPv6.
pub fn v6(number: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, number.into())
}

impl Client {
    /// Client `number` (1 to 254), with host name `c<number>`, cabled to the
    /// server's bridge and with rpcbind and statd running.
    pub fn join(server: &Server, number: u8) -> Result<Client> {
        Self::join_bridge(server.node(), number)
    }

    /// [`Client::join`] on the bridge of this place.
    pub fn join_bridge(bridge: &TestNode, number: u8) -> Result<Client> {
        let name = format!("c{number}");
        let node = TestNode::create(&name)?;
        bridge.ip(&format!(
            "link add v{name} type veth peer name eth0 netns {pid}\n\
             link set v{name} master {BRIDGE} up\n",
            pid = node.pid(),
        ))?;
        node.ip(&format!(
            "link set eth0 up\n\
             addr add {}/16 dev eth0\n\
             addr add {}/64 dev eth0 nodad\n",
            v4(number),
            v6(number),
        ))?;
        start_rpc(&node)?;
        Ok(Client {
            node,
            number,
            mounts: Mutex::new(Vec::new()),
        })
    }

    pub fn node(&self) -> &TestNode {
        &self.node
    }

    /// The address that the server sees for a mount through `vip`.
    pub fn address_for(&self, vip: IpAddr) -> IpAddr {
        match vip {
            IpAddr::V4(_) => v4(self.number).into(),
            IpAddr::V6(_) => v6(self.number).into(),
        }
    }

    /// Mounts the server's export by NFSv3 through `vip`. Each mount has its
    /// own connections (`nosharecache`), and sees the server's files as they
    /// are (`noac`).
    pub fn mount(&self, server: &Server, vip: IpAddr, transport: Transport) -> Result<Mount> {
        self.mount_export(server.export(), vip, transport)
    }

    /// [`Client::mount`] of the directory that the VIP's server exports.
    pub fn mount_export(&self, export: &Path, vip: IpAddr, transport: Transport) -> Result<Mount> {
        let netid = netid(transport, vip);
        let at = PathBuf::from(format!(
            "/run/mnt/{}-{netid}",
            vip.to_string().replace(':', "-")
        ));
        let _watch = super::stuck::watch(format!("mounting {vip}"));
        let source = match vip {
            IpAddr::V4(v4) => format!("{v4}:{}", export.display()),
            // The same on every link, so the client's own link is named too.
            IpAddr::V6(v6) if v6.is_unicast_link_local() => {
                format!("[{v6}%eth0]:{}", export.display())
            }
            IpAddr::V6(v6) => format!("[{v6}]:{}", export.display()),
        };
        let options = format!("vers=3,proto={netid},nosharecache,noac");
        self.mounted(at, &["-t", "nfs", "-o", &options, &source])
    }

    /// Mounts the server's export by NFSv4 through `vip`. From 4.1 on,
    /// a mount through another address of the same server adds a connection to it.
    pub fn mount_nfs4(&self, server: &Server, vip: IpAddr, minor: u8) -> Result<Mount> {
        self.mount_export_nfs4(server.export(), vip, minor)
    }

    /// [`Client::mount_nfs4`] of the directory that the VIP's server exports.
    pub fn mount_export_nfs4(&self, export: &Path, vip: IpAddr, minor: u8) -> Result<Mount> {
        let trunking = if minor > 0 { ",max_connect=4" } else { "" };
        self.mount_nfs4_with(export, vip, minor, trunking)
    }

    /// [`Client::mount_export_nfs4`] with these options, each after a comma.
    pub fn mount_nfs4_with(
        &self,
        export: &Path,
        vip: IpAddr,
        minor: u8,
        options: &str,
    ) -> Result<Mount> {
        let at = PathBuf::from(format!(
            "/run/mnt/{}-v4.{minor}",
            vip.to_string().replace(':', "-")
        ));
        let host = match vip {
            IpAddr::V4(v4) => v4.to_string(),
            IpAddr::V6(v6) => format!("[{v6}]"),
        };
        let netid = netid(Transport::Tcp, vip);
        let options = format!("vers=4.{minor},proto={netid}{options}");
        let source = format!("{host}:{}", export.display());
        self.mounted(at, &["-t", "nfs", "-o", &options, &source])
    }

    /// [`Client::mount`] over TCP with this text as the server's name, by which lockd may
    /// monitor it.
    pub fn mount_named(&self, server: &Server, name: &str, vip: IpAddr) -> Result<Mount> {
        let at = PathBuf::from(format!("/run/mnt/{vip}-named"));
        let options = format!(
            "vers=3,proto=tcp,nosharecache,noac,addr={vip},mountaddr={vip},mountvers=3,\
             mountproto=tcp,mountport={MOUNTD_PORT}"
        );
        // Without the helper, which would choose the address.
        let source = format!("{name}:{}", server.export().display());
        self.mounted(at, &["-i", "-t", "nfs", "-o", &options, &source])
    }

    /// Runs mount(8) with these arguments and this mount point.
    fn mounted(&self, at: PathBuf, arguments: &[&str]) -> Result<Mount> {
        self.node.create_dir(&at)?;
        run(self.node.command("mount").args(arguments).arg(&at)).with_context(|| {
            let arguments = arguments.join(" ");
            format!("client {}: mount {arguments}", self.node.name())
        })?;
        self.mounts
            .lock()
            .expect("no panic while held")
            .push(at.clone());
        Ok(Mount { at })
    }

    /// A new lock owner on this client.
    pub fn locker(&self) -> Result<Locker> {
        let mut command = self.node.command(env::current_exe()?);
        command.arg("locker");
        Locker::spawn(command)
    }

    /// A new lock owner that asks for these locks all the time.
    pub fn busy(&self, wanted: &[Wanted]) -> Result<Busy> {
        self.busy_at(PACE, wanted)
    }

    /// The same with this pause after each answer.
    pub fn busy_at(&self, pace: Duration, wanted: &[Wanted]) -> Result<Busy> {
        let mut command = self.node.command(env::current_exe()?);
        command.arg("busy");
        Busy::start(command, pace, wanted)
    }

    /// Takes a lock with an owner of its own, which must be granted.
    pub fn lock(&self, mount: &Mount, file: &str, range: Range, mode: Mode) -> Result<HeldLock> {
        let locker = self.locker()?;
        let path = mount.path(file);
        match locker.lock(&path, range, mode)? {
            Outcome::Held => Ok(HeldLock {
                locker,
                path,
                range,
            }),
            other => bail!(
                "{mode:?} lock on {} {range:?} of {}: {other:?}",
                path.display(),
                self.node.name()
            ),
        }
    }
}

/// A mounted export.
#[derive(Clone, Debug)]
pub struct Mount {
    at: PathBuf,
}

impl Mount {
    /// Where a file of the export is, as the client's processes see it.
    pub fn path(&self, file: &str) -> PathBuf {
        self.at.join(file)
    }

    pub fn at(&self) -> &Path {
        &self.at
    }
}

/// A lock that its client holds.
pub struct HeldLock {
    locker: Locker,
    path: PathBuf,
    range: Range,
}

impl HeldLock {
    pub fn locker(&self) -> &Locker {
        &self.locker
    }

    /// Unlocks, and waits for the server's answer. The file stays open.
    pub fn unlock(&self) -> Result<()> {
        self.locker.unlock(&self.path, self.range)
    }

    /// The same, and closes the file.
    pub fn release(self) -> Result<()> {
        self.unlock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netids_follow_the_address_family() {
        assert_eq!(netid(Transport::Tcp, "10.77.0.1".parse().unwrap()), "tcp");
        assert_eq!(netid(Transport::Udp, "fd77::1".parse().unwrap()), "udp6");
    }
}
