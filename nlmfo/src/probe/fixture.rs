//! The fixture of the checks: one server with two VIPs of each family, raw clients, and snapshots
//! of what its lockd holds.

use std::env;
use std::fmt;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::held::Held;
use super::known::Kernel;
use super::log;
use crate::kernel;
use crate::observe::host::{NlmVersion, Transport};
use crate::observe::programs::Programs;
use crate::observe::snapshot::Snapshots;
use crate::observe::table::LockTable;
use crate::testbed::command::{Finished, finish, run, run_with_input};
use crate::testbed::handles::FileHandle;
use crate::testbed::node::TestNode;
use crate::testbed::raw::{RawClient, RawNet};
use crate::testbed::server::{
    LOCKD_GRACE, NFSD_GRACE, NFSD_GRACE_TIME, NFSD_LEASE_TIME, NLM_GRACE_PERIOD, Server,
    end_grace_of, export_folder, mount,
};
use crate::testbed::wait::{Seen, until_for};

/// The export and a second one; both lie in the server's own `/run`.
const EXPORT: &str = "/run/nlmfo-probe";
const OTHER_EXPORT: &str = "/run/nlmfo-probe-other";

/// Where the one NFSv4 client mounts the export, in its own `/run`.
const V4_MOUNT: &str = "/run/nlmfo-probe-v4";

/// What mount.nfs prints if the kernel has no NFSv4 client.
const NO_NFSV4: &[&str] = &[
    "Protocol not supported",
    "No such device",
    "unknown filesystem",
];

/// Maximum time for a snapshot while locks change.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

/// Maximum time for which lockd calls a client that does not answer.
const HOSTS: Duration = Duration::from_mins(1);

/// The address family that a check uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub const BOTH: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    /// The VIP that a check uses, and another one that must not change.
    pub fn vips(self) -> [IpAddr; 2] {
        let vips = match self {
            Family::Ipv4 => ["10.77.0.1", "10.77.0.2"],
            Family::Ipv6 => ["fd77::1", "fd77::2"],
        };
        vips.map(|vip| vip.parse().expect("an address"))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "ipv4",
            Family::Ipv6 => "ipv6",
        })
    }
}

/// The testbed with everything that the checks need.
pub struct Fixture {
    net: RawNet,
    pub server: Server,
    snapshots: Snapshots,
    netns: u32,
    queues: bool,
    clients: u16,
    files: u32,
}

impl Fixture {
    /// Starts it; lockd must be in the kernel. `on_node` gets the ID of the process that keeps a
    /// node's namespaces, as soon as it runs.
    pub fn up(kernel: &Kernel, mut on_node: impl FnMut(u32)) -> Result<Fixture> {
        let layout = kernel::layout::load()?;
        let snapshots = Snapshots::attach(Programs::load(&layout)?)?;
        let node = TestNode::create("nlmfo-probe")?;
        on_node(node.pid());
        let netns = fs::metadata(format!("/proc/{}/ns/net", node.pid()))?.ino();
        let server = Server::start(node, Path::new(EXPORT))?;
        mount("tmpfs", server.node(), Path::new(OTHER_EXPORT))?;
        export_folder(server.node(), Path::new(OTHER_EXPORT), 2)?;
        for vip in Family::BOTH.iter().flat_map(|family| family.vips()) {
            server.add_vip(vip)?;
        }
        let net = RawNet::join(&server)?;
        on_node(net.node().pid());
        Ok(Fixture {
            net,
            server,
            snapshots,
            netns: netns as u32,
            queues: kernel.queues(),
            clients: 0,
            files: 0,
        })
    }

    /// A client that the server has not seen before.
    pub fn client(
        &mut self,
        vip: IpAddr,
        version: NlmVersion,
        transport: Transport,
    ) -> Result<RawClient> {
        self.clients += 1;
        self.same_client(vip, version, transport)
    }

    /// The last [`Fixture::client`] again: another host of lockd's at the same address.
    pub fn same_client(
        &self,
        vip: IpAddr,
        version: NlmVersion,
        transport: Transport,
    ) -> Result<RawClient> {
        self.net.client(self.clients, vip, version, transport)
    }

    /// The address of the last [`Fixture::client`].
    pub fn client_address(&self, vip: IpAddr) -> IpAddr {
        crate::testbed::raw::address(self.clients, vip)
    }

    /// The namespaces of all clients.
    pub fn clients_node(&self) -> &TestNode {
        self.net.node()
    }

    /// A new file in the export.
    pub fn file(&mut self, vip: IpAddr) -> Result<FileHandle> {
        let name = self.name();
        self.net.file(&self.server, vip, &name)
    }

    /// A new file in the other export, which is another filesystem.
    pub fn file_elsewhere(&mut self, vip: IpAddr) -> Result<FileHandle> {
        let names = [self.name()];
        let export = Path::new(OTHER_EXPORT);
        let mut files = self.net.files_in(export, &self.server, vip, &names)?;
        files.pop().context("a handle for each name")
    }

    /// A new file in the export, and its path for programs of this machine.
    pub fn file_and_path(&mut self, vip: IpAddr) -> Result<(FileHandle, PathBuf)> {
        let name = self.name();
        let handle = self.net.file(&self.server, vip, &name)?;
        Ok((handle, self.export_path().join(name)))
    }

    fn name(&mut self) -> String {
        self.files += 1;
        format!("file{}", self.files)
    }

    /// What lockd holds through a VIP.
    pub fn held(&mut self, vip: IpAddr) -> Result<Held> {
        Ok(Held::of(&self.table()?.part(|host| host.vip == vip)))
    }

    /// All that the server's lockd holds.
    pub fn table(&mut self) -> Result<LockTable> {
        let snapshot = self.snapshots.take(None, SNAPSHOT_TIMEOUT)?;
        ensure!(
            snapshot.is_exact(),
            "the kernel's lists changed each time they were read, for {SNAPSHOT_TIMEOUT:?}"
        );
        let netns = self.netns;
        Ok(snapshot.table.part(|host| host.netns == netns))
    }

    /// The server's network namespace, as lockd's hosts name it.
    pub fn netns(&self) -> u32 {
        self.netns
    }

    /// Whether this kernel queues a request that blocks.
    pub fn queues(&self) -> bool {
        self.queues
    }

    /// Runs this nlmfo on the server and returns its result.
    pub fn nlmfo(&self, arguments: &[&str]) -> Result<Finished> {
        let this = env::current_exe().context("this program's path")?;
        finish(self.server.node().command(this).args(arguments), "")
    }

    /// [`Fixture::nlmfo`], which must succeed.
    pub fn nlmfo_done(&self, arguments: &[&str]) -> Result<()> {
        let finished = self.nlmfo(arguments)?;
        ensure!(
            finished.status.success(),
            "nlmfo {}: {}: {}{}",
            arguments.join(" "),
            finished.status,
            finished.stderr.trim(),
            finished.stdout.trim()
        );
        Ok(())
    }

    /// Stops everything and returns what nlmfo and lockd did not release.
    pub fn down(mut self) -> Result<Vec<String>> {
        let mut left = self.cleanup()?;
        left.extend(self.stop_for_good().err().map(|error| format!("{error:#}")));
        Ok(left)
    }

    /// Stops lockd with no host in use. A call to a client that does not answer keeps its
    /// host for a while.
    fn stop_for_good(&mut self) -> Result<()> {
        until_for(HOSTS, "lockd to stop with no host in use", || {
            let logged = log::last();
            self.server.stop_nfsd()?;
            let said = log::complaints(log::lines(), logged, log::HOSTS_IN_USE);
            if said.is_empty() {
                return Ok(Seen::Yes(()));
            }
            self.server.start_nfsd()?;
            Ok(Seen::No(said.join("; ")))
        })
    }

    /// Removes what nlmfo left on the server, and returns what that was.
    fn cleanup(&self) -> Result<Vec<String>> {
        let finished = self.nlmfo(&["cleanup", "--json"])?;
        let cleaned: serde_json::Value = serde_json::from_str(&finished.stdout)
            .with_context(|| format!("nlmfo cleanup: {}", finished.stderr.trim()))?;
        let removed = (cleaned["removed"].as_object().into_iter().flatten())
            .chain(std::iter::once((&"gate".to_owned(), &cleaned["gate"])))
            .filter(|(_, count)| count.as_u64() != Some(0))
            .map(|(what, count)| format!("nlmfo had left {what}: {count}"))
            .collect();
        Ok(removed)
    }

    /// Stops nfsd and starts it again, with `seconds` of grace before lockd grants new
    /// locks. nfsd's own grace is ended at once, so that lockd's alone counts.
    pub fn restart_into_grace(&mut self, seconds: u32) -> Result<()> {
        let node = self.server.node();
        node.write(NLM_GRACE_PERIOD, &seconds.to_string())?;
        self.server.stop_nfsd()?;
        self.server.start_nfsd()?;
        end_grace_of(self.server.node(), NFSD_GRACE)?;
        self.net.look_up_ports(&self.server)
    }

    /// Restarts nfsd in its own grace of `seconds`, without lockd's, and runs `work`. Returns its
    /// result, or why nfsd has no grace on this machine.
    ///
    /// nfsd waits only for NFSv4 clients in its records: one mounts the export, and sends nothing
    /// before its lease, of `seconds`, is over.
    pub fn in_nfsds_grace<T>(
        &mut self,
        seconds: u32,
        work: impl FnOnce(&mut Fixture) -> Result<T>,
    ) -> Result<Result<T, String>> {
        let [vip, _] = Family::Ipv4.vips();
        let [was_lease, was_grace] =
            self.set_v4_times([seconds; 2].map(|time| time.to_string()))?;
        self.server.end_grace()?;
        let clients = self.net.node();
        clients.create_dir(V4_MOUNT)?;
        let mounted = finish(
            (clients.command("mount"))
                .args(["-t", "nfs", "-o", "vers=4.2,sec=sys"])
                .args([&format!("{vip}:{EXPORT}"), V4_MOUNT]),
            "",
        )?;
        let said = mounted.stderr.trim();
        let done = match mounted.status.success() {
            false if NO_NFSV4.iter().any(|words| said.contains(words)) => {
                Ok(Err(format!("this machine has no NFSv4 client: {said}")))
            }
            false => Err(anyhow!("NFSv4 mount failed: {said}")),
            true => self.restart_for_nfsds_grace().and_then(|is_in_grace| {
                ensure!(
                    is_in_grace,
                    "nfsd has no grace for a client that its records name"
                );
                Ok(Ok(work(self)?))
            }),
        };
        self.server.end_grace()?;
        if mounted.status.success() {
            run((self.net.node().command("umount")).args(["-f", V4_MOUNT]))?;
        }
        self.set_v4_times([was_lease, was_grace])?;
        done
    }

    /// Restarts nfsd without lockd's grace. Returns whether nfsd's own has begun.
    fn restart_for_nfsds_grace(&mut self) -> Result<bool> {
        self.server.stop_nfsd()?;
        self.server.start_nfsd()?;
        self.end_lockds_grace()?;
        self.net.look_up_ports(&self.server)?;
        Ok(!self.server.node().read(NFSD_GRACE)?.starts_with('Y'))
    }

    /// Sets NFSv4's lease and grace times, for which nfsd has to stop, and returns the old ones.
    fn set_v4_times(&mut self, times: [String; 2]) -> Result<[String; 2]> {
        let node = self.server.node();
        let were = [node.read(NFSD_LEASE_TIME)?, node.read(NFSD_GRACE_TIME)?];
        self.server.stop_nfsd()?;
        node.write(NFSD_LEASE_TIME, &times[0])?;
        node.write(NFSD_GRACE_TIME, &times[1])?;
        self.server.start_nfsd()?;
        self.net.look_up_ports(&self.server)?;
        Ok(were.map(|text| text.trim().to_owned()))
    }

    pub fn end_lockds_grace(&self) -> Result<()> {
        end_grace_of(self.server.node(), LOCKD_GRACE)
    }

    /// Brings the server back to serving, with nothing held.
    pub fn sweep(&mut self) -> Result<()> {
        let node = self.server.node();
        if node.read("/proc/fs/nfsd/threads")?.trim() == "0" {
            self.server.start_nfsd()?;
        }
        self.server.end_grace()?;
        let unlocked = [EXPORT, OTHER_EXPORT]
            .iter()
            .try_for_each(|export| self.unlock_filesystem(export));
        if unlocked.and_then(|()| self.until_empty()).is_err() {
            // unlock_filesystem is under test as well. A restart drops everything.
            self.server.stop_nfsd()?;
            self.server.start_nfsd()?;
            self.server.end_grace()?;
            self.until_empty()?;
        }
        self.net.look_up_ports(&self.server)
    }

    fn until_empty(&mut self) -> Result<()> {
        until_for(SNAPSHOT_TIMEOUT, "an empty server", || {
            let held = Held::of(&self.table()?);
            Ok(match held.is_empty() {
                true => Seen::Yes(()),
                false => Seen::No(format!("{held} held")),
            })
        })
    }

    /// Makes the kernel release everything on the export's filesystem.
    pub fn unlock_export(&self) -> Result<()> {
        self.unlock_filesystem(EXPORT)
    }

    /// The export, as programs of this machine reach it.
    pub fn export_path(&self) -> PathBuf {
        self.server.node().path(EXPORT)
    }

    fn unlock_filesystem(&self, path: &str) -> Result<()> {
        let node = self.server.node();
        // The kernel looks up the path in the mount namespace of the writer.
        let mut tee = node.command("tee");
        tee.arg("/proc/fs/nfsd/unlock_filesystem");
        run_with_input(&mut tee, &format!("{path}\n"))?;
        Ok(())
    }
}
