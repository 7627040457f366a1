//! NLM clients without a kernel: raw calls from any number of source addresses, over UDP or TCP, by
//! NLM v1, v3 or v4.
//!
//! They are in one namespace, `raw`, to which the server routes a prefix per family. Every address of
//! the prefix is local there (AnyIP), so an address costs nothing until a socket binds to it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use crate::rpc::client::{Client, Endpoint, Source};
use crate::rpc::message::Credential;
use crate::rpc::nlm::{self, Lock, LockCall, NlmClient, Share, Status, Test};
use crate::rpc::portmap::Registered;
use anyhow::{Context, Result, ensure};
use nlmfo_common::protocol::Mode;
use nlmfo_common::protocol::{NlmVersion, Transport};
use tokio::runtime::{Builder, Runtime};

use super::handles::{self, FileHandle, NFS_PORT};
use super::node::TestNode;
use super::range::Range;
use super::server::{BRIDGE, MOUNTD_PORT, Server};

const DEADLINE: Duration = Duration::from_secs(20);

/// NLM v1 and v3 take a file handle of exactly this length (fs/lockd/xdr.c);
/// nfsd ignores the zeros behind its own.
const OLD_HANDLE: usize = 32;

/// The namespace of the raw clients, on one server's bridge.
pub struct RawNet {
    node: TestNode,
    ports: Registered,
}

/// Address of raw client `number` (below 65,536), in the family of `vip`.
pub fn address(number: u16, vip: IpAddr) -> IpAddr {
    match vip {
        IpAddr::V4(_) => {
            let [high, low] = number.to_be_bytes();
            Ipv4Addr::new(10, 78, high, low).into()
        }
        IpAddr::V6(_) => Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, number).into(),
    }
}

impl RawNet {
    /// Connects the namespace to the server and looks up the ports of its lockd.
    ///
    /// # Errors
    /// If the namespace cannot be made, or rpcbind does not answer.
    pub fn join(server: &Server) -> Result<RawNet> {
        let node = TestNode::create("raw")?;
        server.node().ip(&format!(
            "link add vraw type veth peer name eth0 netns {pid}\n\
             link set vraw master {BRIDGE} up\n",
            pid = node.pid(),
        ))?;
        // IPv6 has no AnyIP in bind(2) without this.
        node.write("/proc/sys/net/ipv6/ip_nonlocal_bind", "1")?;
        node.ip("link set eth0 up\n\
             addr add 10.77.2.1/16 dev eth0\n\
             addr add fd77::2:1/64 dev eth0 nodad\n\
             route add local 10.78.0.0/16 dev lo\n\
             route add local fd78::/64 dev lo\n")?;
        server.node().ip("route add 10.78.0.0/16 via 10.77.2.1\n\
             route add fd78::/64 via fd77::2:1\n")?;
        let ports = ports(server)?;
        Ok(RawNet { node, ports })
    }

    /// Asks again for the ports of a lockd that has restarted.
    ///
    /// # Errors
    /// If rpcbind does not answer.
    pub fn look_up_ports(&mut self, server: &Server) -> Result<()> {
        self.ports = ports(server)?;
        Ok(())
    }

    /// The node of the clients.
    pub fn node(&self) -> &TestNode {
        &self.node
    }

    /// The address at which the lockd of `vip` takes calls of this version over this transport.
    ///
    /// # Errors
    /// If rpcbind did not name such a port.
    pub fn lockd(
        &self,
        vip: IpAddr,
        version: NlmVersion,
        transport: Transport,
    ) -> Result<SocketAddr> {
        let port = self
            .ports
            .port(nlm::PROGRAM, version.into(), transport, vip.is_ipv6())
            .with_context(|| format!("lockd serves no {version} over {transport} at {vip}"))?;
        Ok(SocketAddr::new(vip, port))
    }

    /// Raw client `number`, connected to the lockd of `vip`.
    ///
    /// # Errors
    /// If rpcbind did not name such a port, or lockd cannot be reached.
    pub fn client(
        &self,
        number: u16,
        vip: IpAddr,
        version: NlmVersion,
        transport: Transport,
    ) -> Result<RawClient> {
        let peer = self.lockd(vip, version, transport)?;
        let (runtime, rpc) = self.connect(peer, transport, address(number, vip))?;
        Ok(RawClient {
            runtime,
            nlm: NlmClient::new(rpc, version),
            version,
            name: format!("raw{number}"),
        })
    }

    /// Creates files in the server's export and asks for their handles, as an
    /// NFSv3 client of `vip` would.
    ///
    /// # Errors
    /// If a file cannot be created, or mountd or nfsd gives no handle.
    pub fn files(&self, server: &Server, vip: IpAddr, names: &[String]) -> Result<Vec<FileHandle>> {
        self.files_in(server.export(), server, vip, names)
    }

    /// [`RawNet::files`] in another of the server's exports.
    ///
    /// # Errors
    /// As [`RawNet::files`].
    pub fn files_in(
        &self,
        export: &Path,
        server: &Server,
        vip: IpAddr,
        names: &[String],
    ) -> Result<Vec<FileHandle>> {
        for name in names {
            let path = server.node().path(export).join(name);
            std::fs::File::create(&path).with_context(|| path.display().to_string())?;
        }
        let address = address(0, vip);
        let connect = |port| self.connect(SocketAddr::new(vip, port), Transport::Tcp, address);
        let (mount_runtime, mut mountd) = connect(MOUNTD_PORT)?;
        let root = mount_runtime.block_on(handles::root(&mut mountd, path_text(export)?))?;
        let (runtime, mut nfsd) = connect(NFS_PORT)?;
        runtime.block_on(async {
            let mut found = Vec::with_capacity(names.len());
            for name in names {
                found.push(handles::lookup(&mut nfsd, &root, name).await?);
            }
            Ok(found)
        })
    }

    /// Creates one file in the server's export: its handle, see [`RawNet::files`].
    ///
    /// # Errors
    /// As [`RawNet::files`].
    pub fn file(&self, server: &Server, vip: IpAddr, name: &str) -> Result<FileHandle> {
        let mut files = self.files(server, vip, &[name.into()])?;
        files.pop().context("a handle for each name")
    }

    /// Makes the server's statd know client `number`. Until then, a LOCK may take so long that a UDP
    /// client sends it twice, and lockd counts two calls.
    ///
    /// # Errors
    /// If a lock is not granted.
    pub fn introduce(&self, number: u16, vip: IpAddr, file: &FileHandle) -> Result<()> {
        let mut client = self.client(number, vip, NlmVersion::V4, Transport::Tcp)?;
        let range = Range::new(1 << 30, 1);
        client.granted(|raw| raw.lock(file, 1, range, Mode::Read))?;
        client.granted(|raw| raw.unlock(file, 1, range))
    }

    fn connect(
        &self,
        peer: SocketAddr,
        transport: Transport,
        source: IpAddr,
    ) -> Result<(Runtime, Client)> {
        self.node.within(|| {
            let runtime = runtime()?;
            let rpc = runtime.block_on(Client::connect(Endpoint {
                peer,
                transport,
                source: Source::Reserved(source),
                credential: credential(),
                deadline: DEADLINE,
            }))?;
            Ok((runtime, rpc))
        })
    }
}

/// Root's credentials, which the export does not squash.
pub fn credential() -> Credential {
    Credential::Unix {
        machine: "raw".into(),
        uid: 0,
        gid: 0,
    }
}

fn ports(server: &Server) -> Result<Registered> {
    server.node().within(|| {
        runtime()?
            .block_on(Registered::look_up(DEADLINE))
            .context("ports of the server's lockd")
    })
}

fn runtime() -> Result<Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

fn path_text(path: &Path) -> Result<&str> {
    path.to_str().context("the export's path is not UTF-8")
}

/// lockd's answer to a call, or why there is none.
pub type Answer = Result<Status>;

/// One NLM client in lockd's sense: an address, a transport and a version.
pub struct RawClient {
    runtime: Runtime,
    nlm: NlmClient,
    version: NlmVersion,
    name: String,
}

impl RawClient {
    /// Sets the `caller_name` of later calls.
    pub fn set_name(&mut self, name: &str) {
        name.clone_into(&mut self.name);
    }

    /// Sets how long later calls wait for an answer.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.nlm.set_deadline(deadline);
    }

    /// LOCK without `block`, monitored: the server's statd records the client.
    ///
    /// # Errors
    /// If lockd does not answer in time.
    pub fn lock(&mut self, file: &FileHandle, svid: u32, range: Range, mode: Mode) -> Answer {
        let call = self.lock_call(file, svid, range, mode);
        Ok(self.runtime.block_on(self.nlm.lock(&call))?)
    }

    /// NM_LOCK: as [`RawClient::lock`], but unmonitored. NLM v3 and v4 only.
    ///
    /// # Errors
    /// If lockd does not answer in time.
    pub fn nm_lock(&mut self, file: &FileHandle, svid: u32, range: Range, mode: Mode) -> Answer {
        let call = self.lock_call(file, svid, range, mode);
        self.unmonitored(&call)
    }

    /// NM_LOCK with `block`: [`Status::Blocked`] when it waits in the server's
    /// queue, or, on kernels that queue no NLM request (6.7 to 6.12), is to be
    /// asked again.
    ///
    /// # Errors
    /// If lockd does not answer in time.
    pub fn wait(&mut self, file: &FileHandle, svid: u32, range: Range, mode: Mode) -> Answer {
        let call = LockCall {
            block: true,
            ..self.lock_call(file, svid, range, mode)
        };
        self.unmonitored(&call)
    }

    /// UNLOCK of a range, which may be a part of what is locked.
    ///
    /// # Errors
    /// If lockd does not answer in time.
    pub fn unlock(&mut self, file: &FileHandle, svid: u32, range: Range) -> Answer {
        let lock = self.lock_arguments(file, svid, range);
        Ok(self.runtime.block_on(self.nlm.unlock(&lock))?)
    }

    /// NM_LOCK with `reclaim`: a lock from before the server's restart, granted only in grace. NLM v3
    /// and v4 only.
    ///
    /// # Errors
    /// If lockd does not answer in time.
    pub fn reclaim(&mut self, file: &FileHandle, svid: u32, range: Range, mode: Mode) -> Answer {
        let call = LockCall {
            reclaim: true,
            ..self.lock_call(file, svid, range, mode)
        };
        self.unmonitored(&call)
    }

    /// TEST: whether this lock would be refused, and because of which lock.
    ///
    /// # Errors
    /// If lockd does not answer in time.
    pub fn test(&mut self, file: &FileHandle, svid: u32, range: Range, mode: Mode) -> Result<Test> {
        let lock = self.lock_arguments(file, svid, range);
        let exclusive = mode == Mode::Write;
        Ok(self.runtime.block_on(self.nlm.test(&lock, exclusive))?)
    }

    /// CANCEL; range and mode must be those of the waiting request.
    ///
    /// # Errors
    /// If lockd does not answer in time.
    pub fn cancel(&mut self, file: &FileHandle, svid: u32, range: Range, mode: Mode) -> Answer {
        let lock = self.lock_arguments(file, svid, range);
        let exclusive = mode == Mode::Write;
        Ok(self.runtime.block_on(self.nlm.cancel(&lock, exclusive))?)
    }

    /// SHARE: access and deny are 1 for read, 2 for write, 3 for both. NLM v3
    /// and v4 only.
    ///
    /// # Errors
    /// If lockd does not answer in time.
    pub fn share(&mut self, file: &FileHandle, access: u32, deny: u32) -> Answer {
        let share = Share {
            caller: self.name.clone(),
            file_handle: self.handle(file),
            owner: self.name.clone().into_bytes(),
            deny,
            access,
        };
        Ok(self.runtime.block_on(self.nlm.share(&share, false))?)
    }

    /// FREE_ALL: gives up everything that this client, of this version and transport,
    /// has through the VIP. NLM v3 and v4 only.
    ///
    /// # Errors
    /// If lockd does not answer in time.
    pub fn free_all(&mut self) -> Result<()> {
        Ok(self
            .runtime
            .block_on(self.nlm.free_all(self.name.as_bytes(), 0))?)
    }

    /// Makes a call that must be granted.
    ///
    /// # Errors
    /// If it fails, or is answered with another status.
    pub fn granted(&mut self, call: impl FnOnce(&mut Self) -> Answer) -> Result<()> {
        let status = call(self)?;
        ensure!(
            status == Status::Granted,
            "{} (NLM {}): {status:?}",
            self.name,
            self.version
        );
        Ok(())
    }

    fn unmonitored(&mut self, call: &LockCall) -> Answer {
        Ok(self.runtime.block_on(self.nlm.nm_lock(call))?)
    }

    fn lock_call(&self, file: &FileHandle, svid: u32, range: Range, mode: Mode) -> LockCall {
        LockCall {
            lock: self.lock_arguments(file, svid, range),
            exclusive: mode == Mode::Write,
            block: false,
            reclaim: false,
            state: 1,
        }
    }

    fn lock_arguments(&self, file: &FileHandle, svid: u32, range: Range) -> Lock {
        Lock {
            caller: self.name.clone().into(),
            file_handle: self.handle(file),
            owner: format!("{svid}@{}", self.name).into_bytes(),
            svid,
            range: nlm::Range {
                offset: range.start,
                length: range.len,
            },
        }
    }

    /// A handle as this client's version sends it.
    pub fn handle(&self, file: &FileHandle) -> Vec<u8> {
        let mut handle = file.0.clone();
        if self.version != NlmVersion::V4 {
            handle.resize(OLD_HANDLE, 0);
        }
        handle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn raw_clients_have_addresses_of_the_vips_family() {
        let v4: IpAddr = "10.77.0.1".parse().unwrap();
        let v6: IpAddr = "fd77::1".parse().unwrap();
        assert_eq!(address(258, v4).to_string(), "10.78.1.2");
        assert_eq!(address(258, v6).to_string(), "fd78::102");
    }
}
