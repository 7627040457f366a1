//! Where lockd listens: its own sockets, read in the kernel. rpcbind is not asked: it loses lockd's
//! ports when it is restarted without `-w`, it may be dead, and any local user may register ports with
//! it. An eBPF program walks the sockets of lockd's `svc_serv` instead (`nlmsvc_serv`): exactly the
//! ports in that list are lockd's.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use aya::Ebpf;
use aya::maps::Array;
use aya::programs::{ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun};
use nlmfo_common::sockets::{Socket, Sockets, SocketsLayout, outcome};

use super::error::ObserveError;
use super::host::{NlmVersion, Transport};
use super::loader::loader;
use super::programs::map_error;
use crate::kernel::{lockd, sockets_layout};

/// The ELF, built by `build.rs`.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/nlmfo-sockets"));

const PROGRAM: &str = "lockd_sockets";
const MAP: &str = "SOCKETS";

/// The list changes when a server starts or stops, and not for longer.
const TORN_TIMEOUT: Duration = Duration::from_secs(2);

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// One socket that lockd listens on. IPv6 sockets accept no IPv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockdPort {
    /// TCP or UDP.
    pub transport: Transport,
    /// Whether it takes calls over IPv6, rather than IPv4.
    pub ipv6: bool,
    /// In the byte order of this machine.
    pub port: u16,
}

/// Where the lockd of one network namespace listens, and which NLM it speaks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockdPorts {
    ports: Vec<LockdPort>,
    versions: Vec<NlmVersion>,
}

impl LockdPorts {
    /// Those of this network namespace; empty if lockd does not serve it.
    ///
    /// # Errors
    /// If the program cannot be run, or the list of sockets keeps changing.
    pub fn look_up() -> Result<Self, ObserveError> {
        if !lockd::is_loaded() {
            return Ok(LockdPorts::default());
        }
        let mut reader = Reader::load(&layout()?)?;
        let until = Instant::now() + TORN_TIMEOUT;
        loop {
            let sockets = reader.read()?;
            match sockets.outcome {
                outcome::TORN | outcome::FAULT if Instant::now() < until => {}
                _ => return decode(&sockets),
            }
        }
    }

    #[cfg(test)]
    pub(crate) fn new(ports: Vec<LockdPort>, versions: Vec<NlmVersion>) -> Self {
        LockdPorts { ports, versions }
    }

    /// The port that calls of this kind to `vip` go to.
    pub fn port(&self, vip: IpAddr, version: NlmVersion, transport: Transport) -> Option<u16> {
        let serves = self.versions.contains(&version);
        let mut ports = self.ports.iter();
        let found = ports.find(|p| p.transport == transport && p.ipv6 == vip.is_ipv6());
        found.filter(|_| serves).map(|found| found.port)
    }

    /// All of them, in ascending order.
    pub fn ports(&self) -> &[LockdPort] {
        &self.ports
    }

    /// The NLM versions that it speaks, in ascending order.
    pub fn versions(&self) -> &[NlmVersion] {
        &self.versions
    }

    /// Whether lockd does not serve this network namespace.
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty()
    }
}

/// The verifier's result for the program, by its name.
///
/// # Errors
/// If the kernel refuses the map, before the verifier sees the program.
pub fn verify(
    layout: &SocketsLayout,
) -> Result<BTreeMap<String, Result<(), ProgramError>>, ObserveError> {
    let mut ebpf = object(layout)?;
    let verdict = program(&mut ebpf)?.load();
    Ok(BTreeMap::from([(PROGRAM.to_owned(), verdict)]))
}

/// The layout is read once for each loaded lockd: that takes longer than everything else.
fn layout() -> Result<SocketsLayout, ObserveError> {
    static KNOWN: Mutex<Option<(Option<u64>, SocketsLayout)>> = Mutex::new(None);
    let incarnation = lockd::incarnation();
    let mut known = KNOWN.lock().unwrap_or_else(|error| error.into_inner());
    match *known {
        Some((of, layout)) if of == incarnation => Ok(layout),
        _ => {
            let layout = sockets_layout::load()?;
            *known = Some((incarnation, layout));
            Ok(layout)
        }
    }
}

fn object(layout: &SocketsLayout) -> Result<Ebpf, ObserveError> {
    loader()
        .override_global("SOCKETS_LAYOUT", layout, true)
        .load(OBJECT)
        .map_err(|error| ObserveError::Load(Box::new(error)))
}

fn program(ebpf: &mut Ebpf) -> Result<&mut RawTracePoint, ObserveError> {
    (ebpf.program_mut(PROGRAM))
        .and_then(|program| program.try_into().ok())
        .ok_or(ObserveError::Foreign(PROGRAM))
}

/// The program in the kernel.
struct Reader(Ebpf);

impl Reader {
    fn load(layout: &SocketsLayout) -> Result<Self, ObserveError> {
        let mut ebpf = object(layout)?;
        (program(&mut ebpf)?.load()).map_err(|source| ObserveError::Refused {
            program: PROGRAM,
            source: Box::new(source),
        })?;
        Ok(Reader(ebpf))
    }

    /// Runs it on this thread, whose network namespace it reads.
    fn read(&mut self) -> Result<Sockets, ObserveError> {
        (program(&mut self.0)?.test_run(RawTracePointRunOptions::new())).map_err(|source| {
            ObserveError::Run {
                program: PROGRAM,
                source: Box::new(source),
            }
        })?;
        let map = self.0.map(MAP).ok_or(ObserveError::Foreign(MAP))?;
        Array::<_, Sockets>::try_from(map)
            .and_then(|map| map.get(&0, 0))
            .map_err(map_error(MAP))
    }
}

/// The result of a run, or why it has none.
fn decode(sockets: &Sockets) -> Result<LockdPorts, ObserveError> {
    let reason = match sockets.outcome {
        outcome::NOT_SERVING => return Ok(LockdPorts::default()),
        outcome::DONE => {
            let used = sockets.found.iter().take(sockets.count as usize);
            let versions = [NlmVersion::V1, NlmVersion::V3, NlmVersion::V4];
            let serves = |version: &NlmVersion| sockets.versions & 1 << u32::from(*version) != 0;
            return Ok(LockdPorts {
                ports: used.filter_map(port).collect(),
                versions: versions.into_iter().filter(serves).collect(),
            });
        }
        outcome::FOREIGN => "nlmsvc_serv does not point to the NLM service",
        outcome::TORN => "their list changed each time it was read",
        outcome::FULL => "there are too many",
        outcome::FAULT => "their list could not be read",
        _ => "their list has no end",
    };
    Err(ObserveError::LockdSockets(reason))
}

/// None for what is no socket of TCP or UDP over IP.
fn port(socket: &Socket) -> Option<LockdPort> {
    let ipv6 = match socket.family {
        AF_INET => false,
        AF_INET6 => true,
        _ => return None,
    };
    Some(LockdPort {
        transport: Transport::from_ip_protocol(socket.protocol)?,
        ipv6,
        port: socket.port,
    })
    .filter(|found| found.port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn socket(family: u16, protocol: u16, port: u16) -> Socket {
        Socket {
            family,
            protocol,
            port,
            pad: 0,
        }
    }

    fn sockets(outcome: u32, found: &[Socket]) -> Sockets {
        let mut sockets = Sockets {
            outcome,
            count: found.len() as u32,
            versions: 1 << 1 | 1 << 3 | 1 << 4,
            ..Sockets::default()
        };
        sockets.found[..found.len()].copy_from_slice(found);
        sockets
    }

    #[test]
    fn each_socket_has_a_port_of_its_own() {
        let found = [
            socket(AF_INET, 17, 1001),
            socket(AF_INET, 6, 1002),
            socket(AF_INET6, 17, 1003),
            socket(AF_INET6, 6, 1004),
            // A local socket, one of another protocol, and one that is not bound.
            socket(1, 0, 1005),
            socket(AF_INET, 132, 1006),
            socket(AF_INET, 6, 0),
        ];
        let ports = decode(&sockets(outcome::DONE, &found)).unwrap();
        let (v4, v6) = ("10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap());
        for (vip, transport, port) in [
            (v4, Transport::Udp, 1001),
            (v4, Transport::Tcp, 1002),
            (v6, Transport::Udp, 1003),
            (v6, Transport::Tcp, 1004),
        ] {
            assert_eq!(ports.port(vip, NlmVersion::V4, transport), Some(port));
        }
        assert_eq!(ports.ports().len(), 4);
    }

    #[test]
    fn a_version_that_lockd_does_not_serve_has_no_port() {
        let old = Sockets {
            versions: 1 << 1 | 1 << 3,
            ..sockets(outcome::DONE, &[socket(AF_INET, 6, 1002)])
        };
        let ports = decode(&old).unwrap();
        let vip = "10.77.0.1".parse().unwrap();
        assert_eq!(ports.port(vip, NlmVersion::V4, Transport::Tcp), None);
        assert_eq!(ports.port(vip, NlmVersion::V3, Transport::Tcp), Some(1002));
        assert_eq!(ports.versions(), [NlmVersion::V1, NlmVersion::V3]);
    }

    #[test]
    fn only_a_lockd_that_serves_nobody_has_no_sockets() {
        assert!(
            decode(&sockets(outcome::NOT_SERVING, &[]))
                .unwrap()
                .is_empty()
        );
        for unread in [
            outcome::CUT,
            outcome::FOREIGN,
            outcome::TORN,
            outcome::FULL,
            outcome::FAULT,
        ] {
            let found = [socket(AF_INET, 6, 1002)];
            assert!(decode(&sockets(unread, &found)).is_err(), "{unread}");
        }
    }
}
