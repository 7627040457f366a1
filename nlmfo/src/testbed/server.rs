//! The kernel's NFS server on a node: addresses, export, daemons, grace.

use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, Result};

use super::command::{run, silent, tool};
use super::node::TestNode;
use super::proc_locks::{self, PosixLock};
use super::wait::{Seen, until};

/// The bridge that a server's clients are connected to.
pub const BRIDGE: &str = "br0";

/// The bridge's hardware address. By default, a bridge has the lowest address of its ports, and changes
/// it as soon as a port with a lower one is added. What clients send to the old address is lost until
/// they resolve the server's addresses again, which takes up to a minute.
const BRIDGE_MAC: &str = "02:6e:6c:6d:66:01";

/// mountd's port, fixed so that raw clients need not ask for it.
pub const MOUNTD_PORT: u16 = 20048;

/// Reads `Y` once lockd's grace has ended; writing `Y` ends it.
pub const LOCKD_GRACE: &str = "/proc/fs/lockd/nlm_end_grace";
/// The same for nfsd's grace.
pub const NFSD_GRACE: &str = "/proc/fs/nfsd/v4_end_grace";

/// How long nfsd's grace lasts, in seconds; set while nfsd is stopped.
pub const NFSD_GRACE_TIME: &str = "/proc/fs/nfsd/nfsv4gracetime";
/// How long NFSv4 leases last, in seconds; set while nfsd is stopped.
pub const NFSD_LEASE_TIME: &str = "/proc/fs/nfsd/nfsv4leasetime";

/// How long lockd waits for the answer to a call of its own before it sends the call again, in
/// seconds; of the whole machine (`nlm_bind_host`, fs/lockd/host.c).
pub const NLM_TIMEOUT: &str = "/proc/sys/fs/nfs/nlm_timeout";
/// How long lockd's grace lasts, in seconds; of the whole machine.
pub const NLM_GRACE_PERIOD: &str = "/proc/sys/fs/nfs/nlm_grace_period";

/// The server's own address, which no client mounts from.
pub const OWN_ADDRESS: &str = "10.77.0.254";
const OWN_V6: &str = "fd77::fe/64";

/// The filesystem of an export. Each export has its own, so that the device number distinguishes the
/// server's locks from the clients'.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filesystem {
    /// In memory.
    Tmpfs,
    /// On a loop device.
    Ext4,
}

/// A running nfsd and lockd, with everything they need.
pub struct Server {
    node: TestNode,
    export: PathBuf,
    daemons: Daemons,
}

impl Server {
    /// Starts the server with a new tmpfs on `export`, and ends both grace
    /// periods, so that locks can be taken at once.
    ///
    /// # Errors
    /// If a daemon does not start or grace does not end.
    pub fn start(node: TestNode, export: &Path) -> Result<Server> {
        Self::start_with(Filesystem::Tmpfs, node, export)
    }

    /// [`Server::start`] with another filesystem.
    ///
    /// # Errors
    /// As [`Server::start`].
    pub fn start_with(filesystem: Filesystem, node: TestNode, export: &Path) -> Result<Server> {
        run(tool("modprobe").args(["-a", "sunrpc", "lockd", "nfsd", "nfsv3", "bridge"]))?;
        make_bridge(&node)?;
        match filesystem {
            Filesystem::Tmpfs => mount("tmpfs", &node, export)?,
            Filesystem::Ext4 => mount_ext4(&node, export)?,
        }
        let daemons = Daemons::start(&node)?;
        export_folder(&node, export, 1)?;
        Ok(Server {
            node,
            export: export.into(),
            daemons,
        })
    }

    /// The node that it runs on.
    pub fn node(&self) -> &TestNode {
        &self.node
    }

    /// The exported directory.
    pub fn export(&self) -> &Path {
        &self.export
    }

    /// Adds a virtual server address.
    ///
    /// # Errors
    /// If the server has the address already.
    pub fn add_vip(&self, vip: IpAddr) -> Result<()> {
        add_vip(&self.node, vip)
    }

    /// Removes a virtual server address.
    ///
    /// # Errors
    /// If the server does not have the address.
    pub fn remove_vip(&self, vip: IpAddr) -> Result<()> {
        let prefix = if vip.is_ipv4() { 32 } else { 128 };
        self.node
            .ip(&format!("addr del {vip}/{prefix} dev {BRIDGE}\n"))
    }

    /// What the kernel holds on the exported filesystem, in order.
    ///
    /// # Errors
    /// If `/proc/locks` cannot be read.
    pub fn locks(&self) -> Result<Vec<PosixLock>> {
        proc_locks::on_filesystem_of(&self.node.path(&self.export))
    }

    /// Ends lockd's and nfsd's grace, both of which refuse NLM locks.
    ///
    /// # Errors
    /// If grace does not end in time.
    pub fn end_grace(&self) -> Result<()> {
        self.daemons.end_grace(&self.node)
    }

    /// Stops nfsd's threads, so that lockd no longer serves this node.
    ///
    /// # Errors
    /// If `rpc.nfsd` fails.
    pub fn stop_nfsd(&self) -> Result<()> {
        run(self.node.command("rpc.nfsd").arg("0"))?;
        Ok(())
    }

    /// Starts nfsd again after [`Server::stop_nfsd`], in its grace and lockd's.
    ///
    /// # Errors
    /// If `rpc.nfsd` fails.
    pub fn start_nfsd(&self) -> Result<()> {
        start_nfsd(&self.node)
    }
}

/// Everything that serves NFSv3 and its locks on a node, without an export.
pub struct Daemons {
    nfsdcld: Child,
}

impl Daemons {
    /// Starts them, and ends both grace periods, so that locks can be taken at once.
    ///
    /// # Errors
    /// If a daemon does not start or grace does not end.
    pub fn start(node: &TestNode) -> Result<Daemons> {
        start_rpc(node)?;
        mount("nfsd", node, Path::new("/proc/fs/nfsd"))?;
        mount("rpc_pipefs", node, Path::new("/run/rpc_pipefs"))?;
        let daemons = Daemons {
            nfsdcld: start_nfsdcld(node)?,
        };
        // Short periods, so that a grace that cannot be ended by hand ends soon.
        for (file, seconds) in [
            (NLM_TIMEOUT, "3"),
            (NLM_GRACE_PERIOD, "3"),
            (NFSD_LEASE_TIME, "10"),
            (NFSD_GRACE_TIME, "10"),
        ] {
            node.write(file, seconds)?;
        }
        start_nfsd(node)?;
        run(node
            .command("rpc.mountd")
            .args(["--port", &MOUNTD_PORT.to_string()]))?;
        daemons.end_grace(node)?;
        Ok(daemons)
    }

    /// Ends lockd's and nfsd's grace, both of which refuse NLM locks.
    fn end_grace(&self, node: &TestNode) -> Result<()> {
        end_grace_of(node, LOCKD_GRACE)?;
        end_grace_of(node, NFSD_GRACE)
    }
}

/// Ends the grace whose control file this is ([`LOCKD_GRACE`] or [`NFSD_GRACE`]).
///
/// # Errors
/// If it does not end in time.
pub fn end_grace_of(node: &TestNode, control: &str) -> Result<()> {
    until(&format!("the end of grace by {control}"), || {
        let state = node.read(control)?;
        if state.starts_with('Y') {
            return Ok(Seen::Yes(()));
        }
        // EBUSY while client tracking is still starting: try again.
        let said = node.write(control, "Y").err();
        Ok(Seen::No(format!(
            "{control} reads {state:?}; write: {said:?}"
        )))
    })
}

impl Drop for Daemons {
    fn drop(&mut self) {
        let _ = self.nfsdcld.kill();
        let _ = self.nfsdcld.wait();
    }
}

fn start_nfsd(node: &TestNode) -> Result<()> {
    run(node.command("rpc.nfsd").args(["--tcp", "--udp", "4"]))?;
    Ok(())
}

/// Exports a directory to everyone; file handles begin with `fsid`.
///
/// # Errors
/// If `exportfs` fails.
pub fn export_folder(node: &TestNode, folder: &Path, fsid: u32) -> Result<()> {
    // exportfs reads this file even when the export is on its command line.
    run(node.command("touch").arg("/etc/exports"))?;
    run(node
        .command("exportfs")
        .args(["-o", &export_options(fsid)])
        .arg(format!("*:{}", folder.display())))?;
    Ok(())
}

/// What `exportfs -o` is given.
pub fn export_options(fsid: u32) -> String {
    format!("rw,no_root_squash,no_subtree_check,insecure,fsid={fsid},sec=sys")
}

/// The bridge for clients, with the node's own address.
///
/// # Errors
/// If `ip` fails: the bridge may be there already.
pub fn make_bridge(node: &TestNode) -> Result<()> {
    node.ip(&format!(
        "link set lo up\n\
         link add {BRIDGE} address {BRIDGE_MAC} type bridge\n\
         link set {BRIDGE} up\n\
         addr add {OWN_ADDRESS}/16 dev {BRIDGE}\n\
         addr add {OWN_V6} dev {BRIDGE} nodad\n"
    ))
}

/// Adds a virtual server address to the bridge.
///
/// # Errors
/// If it is there already.
pub fn add_vip(node: &TestNode, vip: IpAddr) -> Result<()> {
    node.ip(&match vip {
        IpAddr::V4(v4) => format!("addr add {v4}/32 dev {BRIDGE}\n"),
        IpAddr::V6(v6) => format!("addr add {v6}/128 dev {BRIDGE} nodad\n"),
    })
}

/// Mounts a filesystem of this kind, which needs no device.
///
/// # Errors
/// If the directory cannot be made, or `mount` fails.
pub fn mount(kind: &str, node: &TestNode, at: &Path) -> Result<()> {
    node.create_dir(at)?;
    run(node.command("mount").args(["-t", kind, kind]).arg(at))?;
    Ok(())
}

fn mount_ext4(node: &TestNode, at: &Path) -> Result<()> {
    const IMAGE: &str = "/tmp/export.img";
    const BYTES: u64 = 32 << 20;
    File::create(IMAGE)
        .and_then(|image| image.set_len(BYTES))
        .context(IMAGE)?;
    // Without udev, the module is not loaded if its control device is missing.
    run(tool("modprobe").arg("loop"))?;
    run(node.command("mkfs.ext4").args(["-q", "-F", IMAGE]))?;
    node.create_dir(at)?;
    run(node
        .command("mount")
        .args(["-t", "ext4", "-o", "loop", IMAGE])
        .arg(at))?;
    Ok(())
}

/// rpcbind and statd, which an NFSv3 server and client both need. Each returns
/// once it serves.
///
/// # Errors
/// If one of them does not start.
pub fn start_rpc(node: &TestNode) -> Result<()> {
    run(node.command("rpcbind").arg("-w"))?;
    run(node.command("rpc.statd").arg("--no-notify"))?;
    Ok(())
}

/// If nfsdcld runs before nfsd starts, nfsd knows that no NFSv4 client can reclaim, and skips a grace
/// of 90 s, which would refuse NLM locks too. nfsd looks for the reader of its pipe when it starts, so
/// this waits until nfsdcld watches the directory.
fn start_nfsdcld(node: &TestNode) -> Result<Child> {
    let mut nfsdcld = silent(node.command("nfsdcld"))
        .args(["-F", "-p", "/run/rpc_pipefs"])
        .spawn()
        .context("cannot start nfsdcld")?;
    // nsenter executes the program in place: the child's id is nfsdcld's.
    let fdinfo = format!("/proc/{}/fdinfo", nfsdcld.id());
    until("nfsdcld to watch its pipe's directory", || {
        if let Some(status) = nfsdcld.try_wait()? {
            return Ok(Seen::No(format!("it ended: {status}")));
        }
        for entry in fs::read_dir(&fdinfo)? {
            // A descriptor may close between listing and reading.
            let info = fs::read_to_string(entry?.path()).unwrap_or_default();
            if info.contains("inotify") {
                return Ok(Seen::Yes(()));
            }
        }
        Ok(Seen::No("no inotify watch among its descriptors".into()))
    })?;
    Ok(nfsdcld)
}
