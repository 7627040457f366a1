//! What a cluster moves: a VIP, and the filesystem that is exported through it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::agent::{AGENT, quoted};
use super::node::DEVICE;
use super::{Node, STATE};
use crate::guest::proc_locks::{self, PosixLock};
use crate::guest::server::export_options;

/// The file that a hand-over program creates when it is done.
pub const HANDED_OVER: &str = "/tmp/handed-over";

/// A VIP with a filesystem on a disk that both servers have.
pub struct Service {
    pub vip: IpAddr,
    disk: char,
    folder: PathBuf,
    /// The same on every server, or clients' file handles would be stale after a move.
    fsid: u32,
}

impl Service {
    /// The service on the disk of this number, from 0.
    pub(super) fn new(number: usize, vip: IpAddr) -> Result<Service> {
        let number = u8::try_from(number)?;
        let disk = char::from(b'a' + number);
        Ok(Service {
            vip,
            disk,
            folder: format!("/srv/{disk}").into(),
            fsid: 100 + u32::from(number),
        })
    }

    /// Where the filesystem is mounted, on whichever server.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The disk's device, on every server.
    pub fn device(&self) -> String {
        format!("/dev/vd{}", self.disk)
    }

    /// A text of the documentation, with this service's names.
    pub fn named(&self, text: &str) -> String {
        let Service { vip, fsid, .. } = self;
        let group = format!("nfs{}", fsid - 99);
        text.replace("192.0.2.1", &vip.to_string())
            .replace("/srv/nfs1", &self.folder.display().to_string())
            .replace("/dev/vg0/nfs1", &self.device())
            .replace("/var/lib/nlmfo", STATE)
            .replace("fsid\" value=\"1\"", &format!("fsid\" value=\"{fsid}\""))
            .replace("fsid=1 ", &format!("fsid={fsid} "))
            .replace("nfs1", &group)
    }

    pub fn fsid(&self) -> u32 {
        self.fsid
    }

    /// Makes an empty filesystem.
    pub(super) fn format(&self, node: &Node) -> Result<()> {
        node.shell(&format!("mkfs.ext4 -q -F {}", self.device()))?;
        Ok(())
    }

    /// Mounts and exports the filesystem, then brings the address up.
    pub fn start(&self, node: &Node) -> Result<()> {
        node.shell(&self.start_script())?;
        Ok(())
    }

    /// Takes the address away, then the filesystem.
    pub fn stop(&self, node: &Node) -> Result<()> {
        node.shell(&self.stop_script())?;
        Ok(())
    }

    /// A program of the node that moves the service to the host that is its first argument,
    /// as `nlmfo failover --hand-over` runs it. It may be run again, wherever it ended.
    pub fn hand_over_program(&self, node: &Node) -> Result<&'static str> {
        const PATH: &str = "/tmp/hand-over";
        let script = format!(
            "#!/bin/sh\nset -e\n{}\n{AGENT} rsh \"$1\" {}\ntouch {HANDED_OVER}\n",
            self.stop_script(),
            quoted(&self.start_script())
        );
        node.node().write_program(PATH, &script)?;
        Ok(PATH)
    }

    /// Shell that starts what is not started.
    fn start_script(&self) -> String {
        let Service {
            vip, disk, fsid, ..
        } = self;
        let folder = self.folder.display();
        let prefix = self.prefix();
        let options = export_options(*fsid);
        // Of an IPv6 address the kernel tells the neighbours (`node::serve`).
        let announce = match vip {
            IpAddr::V4(_) => format!("arping -q -A -c 1 -I {DEVICE} {vip}"),
            IpAddr::V6(_) => "true".into(),
        };
        format!(
            "set -e\n\
             mkdir -p {folder}\n\
             mountpoint -q {folder} || mount /dev/vd{disk} {folder}\n\
             touch /etc/exports\n\
             exportfs -o {options} '*:{folder}'\n\
             ip addr replace {prefix} dev {DEVICE}\n\
             {announce}"
        )
    }

    /// Shell that stops what is not stopped. nfsd keeps a file open for a moment after its
    /// last use, so the filesystem may be busy at first.
    fn stop_script(&self) -> String {
        let vip = self.vip;
        let folder = self.folder.display();
        let prefix = self.prefix();
        format!(
            "if ip -o addr show dev {DEVICE} | grep -qF ' {vip}/'; then \
                 ip addr del {prefix} dev {DEVICE}; fi\n\
             if mountpoint -q {folder}; then\n\
             exportfs -u '*:{folder}'; exportfs -f\n\
             tries=0\n\
             until umount {folder}; do tries=$((tries + 1)); [ $tries -lt 300 ]; sleep 0.1; done\n\
             fi"
        )
    }

    /// What the node's kernel holds on the filesystem, in order.
    pub fn locks(&self, node: &Node) -> Result<Vec<PosixLock>> {
        let folder = self.folder.display();
        let said = node.shell(&format!("stat -c '%Hd %Ld' {folder}; cat /proc/locks"))?;
        let (device, locks) = said.split_once('\n').context("a device, then locks")?;
        let (major, minor) = device.split_once(' ').context("major and minor number")?;
        let device = (major.parse()?, minor.parse()?);
        let mut locks = proc_locks::parse(locks)?;
        locks.retain(|lock| lock.device == device);
        locks.sort();
        Ok(locks)
    }

    fn prefix(&self) -> String {
        match self.vip {
            IpAddr::V4(vip) => format!("{vip}/32"),
            IpAddr::V6(vip) => format!("{vip}/128"),
        }
    }
}
