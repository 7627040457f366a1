//! What a cluster moves: a VIP, and the filesystem that is exported through it.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Node;
use super::node::DEVICE;
use crate::guest::proc_locks::{self, PosixLock};
use crate::guest::server::export_folder;
use crate::guest::wait::{Seen, until};

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

    /// Makes an empty filesystem.
    pub(super) fn format(&self, node: &Node) -> Result<()> {
        node.shell(&format!("mkfs.ext4 -q -F /dev/vd{}", self.disk))?;
        Ok(())
    }

    /// Mounts and exports the filesystem, then brings the address up.
    pub fn start(&self, node: &Node) -> Result<()> {
        self.start_filesystem(node)?;
        self.start_address(node)
    }

    /// Mounts and exports the filesystem.
    pub fn start_filesystem(&self, node: &Node) -> Result<()> {
        let folder = self.folder.display();
        node.shell(&format!(
            "mkdir -p {folder}; mount /dev/vd{} {folder}",
            self.disk
        ))?;
        export_folder(node.place(), &self.folder, self.fsid)
    }

    /// Adds the VIP and tells the neighbours where it is now.
    pub fn start_address(&self, node: &Node) -> Result<()> {
        let prefix = self.prefix();
        let announce = match self.vip {
            IpAddr::V4(vip) => format!("arping -q -A -c 1 -I {DEVICE} {vip}"),
            IpAddr::V6(_) => "true".into(),
        };
        node.shell(&format!("ip addr add {prefix} dev {DEVICE}; {announce}"))?;
        Ok(())
    }

    /// Takes the address away, then the filesystem.
    pub fn stop(&self, node: &Node) -> Result<()> {
        self.stop_address(node)?;
        self.stop_filesystem(node)
    }

    pub fn stop_address(&self, node: &Node) -> Result<()> {
        node.shell(&format!("ip addr del {} dev {DEVICE}", self.prefix()))?;
        Ok(())
    }

    /// Unexports and unmounts. nfsd keeps a file open for a moment after its last use, so
    /// the filesystem may be busy at first.
    pub fn stop_filesystem(&self, node: &Node) -> Result<()> {
        let folder = self.folder.display();
        node.shell(&format!("exportfs -u '*:{folder}'; exportfs -f"))?;
        until(&format!("{folder} to be unmounted"), || {
            Ok(match node.shell(&format!("umount {folder}")) {
                Ok(_) => Seen::Yes(()),
                Err(error) => Seen::No(format!("{error:#}")),
            })
        })
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
            IpAddr::V6(vip) => format!("{vip}/128 nodad"),
        }
    }
}
