//! The ports of services by rpcbind, on this node and on others.
//!
//! A service has up to four listeners, each with a port of its own: TCP and UDP, over
//! IPv4 and IPv6. rpcbind v3 and v4 (RFC 1833) know all four by *netid*; the old
//! portmapper (v2) only those of IPv4.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;

use super::client::{Cause, Client, Endpoint, Error, Source};
use super::message::{Credential, Procedure};
use super::registration::{self, Registration};
use super::xdr::{self, Decoder, Encoder};
use nlmfo_common::protocol::Transport;

pub(super) const PROGRAM: u32 = 100_000;
/// Where every rpcbind listens.
pub const PORT: u16 = 111;

/// Longest netid, universal address or owner in rpcbind's list.
pub(super) const MAX_STRING: usize = 256;

const DUMP: &str = "DUMP";

/// One address that one version of a program is served at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Service {
    pub program: u32,
    pub version: u32,
    pub transport: Transport,
    pub ipv6: bool,
    pub port: u16,
}

/// The registrations with the rpcbind of this network namespace. They only show what clients get: any
/// local user may register a program.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Registered(Vec<Service>);

impl Registered {
    pub async fn look_up(deadline: Duration) -> Result<Self, Error> {
        services(deadline).await.map(Registered)
    }

    #[cfg(test)]
    pub(crate) fn new(services: Vec<Service>) -> Self {
        Registered(services)
    }

    pub fn port(
        &self,
        program: u32,
        version: u32,
        transport: Transport,
        ipv6: bool,
    ) -> Option<u16> {
        let mut services = self.0.iter();
        let found = services.find(|service| {
            service.program == program
                && service.version == version
                && service.transport == transport
                && service.ipv6 == ipv6
        });
        found.map(|service| service.port)
    }
}

/// A connection to the rpcbind of another node.
async fn connect(
    node: IpAddr,
    transport: Transport,
    source: Source,
    deadline: Duration,
) -> Result<Client, Error> {
    Client::connect(Endpoint {
        peer: SocketAddr::new(node, PORT),
        transport,
        source,
        credential: Credential::Null,
        deadline,
    })
    .await
}

/// The UDP port of a service on another node, as its rpcbind tells; `None` if it has no
/// such service. Called from `source`.
pub(crate) async fn port_at(
    node: IpAddr,
    source: Source,
    program: u32,
    version: u32,
    deadline: Duration,
) -> Result<Option<u16>, Error> {
    let mut client = connect(node, Transport::Udp, source, deadline).await?;
    let (asked, arguments) = udp_port_call(node, program, version);
    let results = client.call(&asked, &arguments).await?;
    udp_port(node, &results).map_err(|error| client.error(&asked, error))
}

/// [`port_at`] for either transport, which the call goes over too.
pub(crate) async fn port_over(
    transport: Transport,
    node: IpAddr,
    program: u32,
    version: u32,
    deadline: Duration,
) -> Result<Option<u16>, Error> {
    let mut client = connect(node, transport, Source::Any, deadline).await?;
    let (asked, arguments) = port_call(transport, node, program, version);
    let results = client.call(&asked, &arguments).await?;
    udp_port(node, &results).map_err(|error| client.error(&asked, error))
}

/// The call that asks a node's rpcbind, at [`PORT`], for the UDP port of a service: the
/// procedure and its arguments. Over IPv4 every portmapper since version 2 knows it.
pub(crate) fn udp_port_call(node: IpAddr, program: u32, version: u32) -> (Procedure, Bytes) {
    port_call(Transport::Udp, node, program, version)
}

fn port_call(transport: Transport, node: IpAddr, program: u32, version: u32) -> (Procedure, Bytes) {
    let (number, netid) = match transport {
        Transport::Tcp => (6, "tcp6"),
        Transport::Udp => (17, "udp6"),
    };
    let mut arguments = Encoder::default();
    arguments.u32(program);
    arguments.u32(version);
    let asked = match node {
        IpAddr::V4(_) => {
            arguments.u32(number);
            arguments.u32(0);
            procedure(2, 3, "GETPORT")
        }
        IpAddr::V6(_) => {
            for (what, text) in [("netid", netid), ("address", ""), ("owner", "")] {
                (arguments.opaque(what, text.as_bytes(), MAX_STRING))
                    .expect("these texts are far below the limit");
            }
            procedure(4, 3, "GETADDR")
        }
    };
    (asked, arguments.finish().freeze())
}

/// What that call's results say: `None` if the node has no such service.
pub(crate) fn udp_port(node: IpAddr, results: &[u8]) -> Result<Option<u16>, xdr::Error> {
    let mut xdr = Decoder::new(results);
    let port = match node {
        IpAddr::V4(_) => u16::try_from(xdr.u32("the port")?).ok(),
        IpAddr::V6(_) => universal_port(xdr.opaque("the universal address", MAX_STRING)?),
    };
    Ok(port.filter(|&port| port != 0))
}

/// A client of this network namespace's rpcbind.
async fn local(deadline: Duration) -> Result<Client, Error> {
    let loopback = Ipv4Addr::LOCALHOST.into();
    connect(loopback, Transport::Tcp, Source::Any, deadline).await
}

/// All registrations with the rpcbind of this network namespace, as it has them.
///
/// # Errors
/// Also if it speaks version 2 only.
pub(crate) async fn registrations(deadline: Duration) -> Result<Vec<Registration>, Error> {
    dumped(&mut local(deadline).await?).await
}

async fn dumped(client: &mut Client) -> Result<Vec<Registration>, Error> {
    let mut last = None;
    for version in [4, 3] {
        let dump = rpcbind(version, DUMP);
        match client.call(&dump, &[]).await {
            Ok(results) => {
                return registration::decode(&results).map_err(|error| client.error(&dump, error));
            }
            // It hangs, whatever the version.
            Err(error) if matches!(error.cause, Cause::Deadline(_)) => return Err(error),
            Err(error) => last = Some(error),
        }
    }
    Err(last.expect("both versions have failed"))
}

/// Everything that rpcbind knows of TCP and UDP services.
async fn services(deadline: Duration) -> Result<Vec<Service>, Error> {
    let mut client = local(deadline).await?;
    match dumped(&mut client).await {
        Ok(all) => return Ok(all.iter().filter_map(service).collect()),
        Err(error) if matches!(error.cause, Cause::Refused(_)) => {}
        Err(error) => return Err(error),
    }
    let dump = rpcbind(2, DUMP);
    let results = client.call(&dump, &[]).await?;
    decode_v2(&results).map_err(|error| client.error(&dump, error))
}

/// DUMP is procedure 4 in every version.
fn rpcbind(version: u32, name: &'static str) -> Procedure {
    procedure(version, 4, name)
}

pub(super) fn procedure(version: u32, number: u32, name: &'static str) -> Procedure {
    Procedure {
        program: PROGRAM,
        program_name: "rpcbind",
        version,
        number,
        name,
    }
}

/// None for a service at a Unix socket.
fn service(registration: &Registration) -> Option<Service> {
    let (transport, ipv6) = match &*registration.netid {
        "tcp" => (Transport::Tcp, false),
        "udp" => (Transport::Udp, false),
        "tcp6" => (Transport::Tcp, true),
        "udp6" => (Transport::Udp, true),
        _ => return None,
    };
    Some(Service {
        program: registration.program,
        version: registration.version,
        transport,
        ipv6,
        port: universal_port(registration.address.as_bytes())?,
    })
}

/// `pmaplist`: program, version, IP protocol number, port. IPv4 only.
fn decode_v2(results: &[u8]) -> Result<Vec<Service>, xdr::Error> {
    let mut xdr = Decoder::new(results);
    let mut services = Vec::new();
    while xdr.bool("is there another entry")? {
        let program = xdr.u32("the program")?;
        let version = xdr.u32("the version")?;
        let protocol = xdr.u32("the protocol")?;
        let port = xdr.u32("the port")?;
        let transport = u16::try_from(protocol)
            .ok()
            .and_then(Transport::from_ip_protocol);
        if let (Some(transport), Ok(port)) = (transport, u16::try_from(port)) {
            services.push(Service {
                program,
                version,
                transport,
                ipv6: false,
                port,
            });
        }
    }
    xdr.finish()?;
    Ok(services)
}

/// The port in a universal address (RFC 5665): its last two numbers are the port's
/// two bytes, as in `0.0.0.0.142.13` and `::.142.13`.
fn universal_port(address: &[u8]) -> Option<u16> {
    let mut parts = std::str::from_utf8(address).ok()?.rsplit('.');
    let low: u8 = parts.next()?.parse().ok()?;
    let high: u8 = parts.next()?.parse().ok()?;
    Some(u16::from_be_bytes([high, low]))
}

#[cfg(test)]
mod tests {
    use super::super::xdr::Encoder;
    use super::*;

    fn list_v3(entries: &[(u32, u32, &str, &str)]) -> Vec<u8> {
        let mut xdr = Encoder::default();
        for (program, version, netid, address) in entries {
            xdr.bool(true);
            xdr.u32(*program);
            xdr.u32(*version);
            for text in [netid, address, &"superuser"] {
                xdr.opaque("text", text.as_bytes(), MAX_STRING).unwrap();
            }
        }
        xdr.bool(false);
        xdr.finish().to_vec()
    }

    #[test]
    fn each_listener_has_a_port_of_its_own() {
        let list = list_v3(&[
            (100_000, 4, "local", "/run/rpcbind.sock"),
            (100_021, 4, "udp", "0.0.0.0.150.1"),
            (100_021, 4, "tcp", "0.0.0.0.150.2"),
            (100_021, 1, "tcp", "0.0.0.0.150.2"),
            (100_021, 4, "udp6", "::.150.3"),
            (100_021, 4, "tcp6", "::.150.4"),
        ]);
        let all = registration::decode(&list).unwrap();
        let ports = Registered(all.iter().filter_map(service).collect());
        let base = 150 * 256;
        assert_eq!(
            ports.port(100_021, 4, Transport::Udp, false),
            Some(base + 1)
        );
        assert_eq!(
            ports.port(100_021, 4, Transport::Tcp, false),
            Some(base + 2)
        );
        assert_eq!(
            ports.port(100_021, 1, Transport::Tcp, false),
            Some(base + 2)
        );
        assert_eq!(ports.port(100_021, 4, Transport::Udp, true), Some(base + 3));
        assert_eq!(ports.port(100_021, 4, Transport::Tcp, true), Some(base + 4));
        assert_eq!(ports.port(100_021, 1, Transport::Tcp, true), None);
    }

    #[test]
    fn the_old_portmapper_knows_ipv4() {
        let mut xdr = Encoder::default();
        for (protocol, port) in [(17, 700), (6, 701), (200, 702)] {
            xdr.bool(true);
            for word in [100_021, 3, protocol, port] {
                xdr.u32(word);
            }
        }
        xdr.bool(false);
        let ports = Registered(decode_v2(&xdr.finish()).unwrap());
        assert_eq!(ports.port(100_021, 3, Transport::Udp, false), Some(700));
        assert_eq!(ports.port(100_021, 3, Transport::Tcp, false), Some(701));
    }

    #[test]
    fn a_list_that_is_cut_off_is_an_error() {
        let list = list_v3(&[(100_021, 4, "tcp", "0.0.0.0.150.2")]);
        for length in 0..list.len() {
            assert!(
                registration::decode(&list[..length]).is_err(),
                "cut at {length}"
            );
        }
    }

    #[test]
    fn only_the_last_two_numbers_are_the_port() {
        assert_eq!(universal_port(b"127.0.0.1.3.32"), Some(800));
        assert_eq!(universal_port(b"fe80::1%2.0.111"), Some(111));
        assert_eq!(universal_port(b"0.0.0.0.256.1"), None);
        assert_eq!(universal_port(b"12"), None);
    }
}
