//! One connection (TCP) or one socket (UDP) to an RPC service.
//!
//! A client can send from an address that is not this node's: lockd identifies a caller by its address,
//! and releasing a host's locks means calling in its name. Such a socket is *transparent* (ip(7), needs
//! `CAP_NET_ADMIN`), and replies reach it only while routes lead to it: see `release::route`.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use nlmfo_common::gate::OWN_MARK;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::{Instant, timeout_at};

use super::message::{
    Credential, LAST_FRAGMENT, Procedure, RECORD_MARKER, Refusal, decode_reply, encode_call,
    reply_xid, with_marker,
};
use super::xdr;
use nlmfo_common::protocol::Transport;

/// Longest reply that is read. The longest is rpcbind's list, with about 60 bytes an entry.
const MAX_RECORD: usize = 1 << 20;

/// First wait before a UDP call is sent again; doubled each time.
const UDP_RETRY: Duration = Duration::from_millis(500);

/// Source ports that only root can bind, which an export without `insecure` requires. Linux clients use
/// 665 to 1023, so ours begin below: the client's own connection to the same service may have exactly
/// this source.
const RESERVED_PORTS: std::ops::Range<u16> = 512..1024;
const FIRST_PORTS: u16 = 665 - 512;

/// The source of a call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Any address of this node, any port.
    #[default]
    Any,
    /// This address, a port below 1024.
    Reserved(IpAddr),
    /// As `Reserved`, with an address that need not be this node's.
    InNameOf(IpAddr),
}

/// A service and how to speak to it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    pub peer: SocketAddr,
    pub transport: Transport,
    pub source: Source,
    pub credential: Credential,
    /// Time for connecting, and then for each call.
    pub deadline: Duration,
}

/// What went wrong with one call, and with which.
#[derive(Debug, thiserror::Error)]
#[error("{what} to {peer} over {transport}")]
pub struct Error {
    /// The call, or "connecting".
    pub what: String,
    pub peer: SocketAddr,
    pub transport: Transport,
    #[source]
    pub cause: Cause,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    #[error("cannot send from {address}: {error}")]
    Source { address: IpAddr, error: io::Error },
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the arguments or results violate the protocol")]
    Xdr(#[from] xdr::Error),
}

/// A client of one RPC service, over TCP or UDP.
#[derive(Debug)]
pub struct Client {
    endpoint: Endpoint,
    io: Io,
    next_xid: u32,
}

#[derive(Debug)]
enum Io {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Client {
    /// Connects. A UDP client finds out only at its first call whether a service is there.
    pub async fn connect(endpoint: Endpoint) -> Result<Self, Error> {
        let until = Instant::now() + endpoint.deadline;
        let io = match timeout_at(until, connect(&endpoint)).await {
            Ok(Ok(io)) => io,
            Ok(Err(cause)) => return Err(endpoint.error("connecting", cause)),
            Err(_) => {
                let cause = Cause::Deadline(endpoint.deadline);
                return Err(endpoint.error("connecting", cause));
            }
        };
        Ok(Client {
            endpoint,
            io,
            next_xid: random() as u32,
        })
    }

    /// Makes one call and returns its results, undecoded.
    pub async fn call(&mut self, procedure: &Procedure, arguments: &[u8]) -> Result<Bytes, Error> {
        let xid = self.next_xid;
        self.next_xid = xid.wrapping_add(1);
        let call = encode_call(xid, procedure, &self.endpoint.credential, arguments);
        let until = Instant::now() + self.endpoint.deadline;
        let exchange = async {
            match &mut self.io {
                Io::Tcp(stream) => exchange_tcp(stream, xid, &call).await,
                Io::Udp(socket) => exchange_udp(socket, xid, &call).await,
            }
        };
        let result = match timeout_at(until, exchange).await {
            Ok(Ok(record)) => decode_reply(record).map_err(Cause::from),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Cause::Deadline(self.endpoint.deadline)),
        };
        result.map_err(|cause| self.endpoint.error(procedure, cause))
    }

    /// The error for invalid arguments or results of a call.
    pub fn error(&self, procedure: &Procedure, error: xdr::Error) -> Error {
        self.endpoint.error(procedure, error.into())
    }

    /// Time for each call from now on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.endpoint.deadline = deadline;
    }
}

impl Endpoint {
    fn error(&self, what: impl ToString, cause: Cause) -> Error {
        Error {
            what: what.to_string(),
            peer: self.peer,
            transport: self.transport,
            cause,
        }
    }
}

async fn connect(endpoint: &Endpoint) -> Result<Io, Cause> {
    let socket = open(endpoint)?;
    match endpoint.transport {
        Transport::Tcp => {
            let socket = TcpSocket::from_std_stream(socket.into());
            let stream = socket.connect(endpoint.peer).await?;
            stream.set_nodelay(true)?;
            Ok(Io::Tcp(stream))
        }
        Transport::Udp => {
            let socket = UdpSocket::from_std(socket.into())?;
            socket.connect(endpoint.peer).await?;
            Ok(Io::Udp(socket))
        }
    }
}

fn open(endpoint: &Endpoint) -> Result<Socket, Cause> {
    let (kind, protocol) = match endpoint.transport {
        Transport::Tcp => (Type::STREAM, Protocol::TCP),
        Transport::Udp => (Type::DGRAM, Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(endpoint.peer), kind, Some(protocol))?;
    socket.set_nonblocking(true)?;
    let address = match endpoint.source {
        Source::Any => return Ok(socket),
        Source::Reserved(address) => address,
        Source::InNameOf(address) => {
            make_transparent(&socket, address).map_err(|error| Cause::Source { address, error })?;
            // Such a call is nlmfo's own, and passes the fence of the address it goes to.
            socket.set_mark(OWN_MARK)?;
            if endpoint.transport == Transport::Tcp {
                // A connection in another host's name leaves no TIME_WAIT behind.
                socket.set_linger(Some(Duration::ZERO))?;
            }
            address
        }
    };
    bind_reserved(&socket, address).map_err(|error| Cause::Source { address, error })?;
    Ok(socket)
}

/// Linux checks the source of IPv4 packets it sends, unless the socket is
/// transparent; for IPv6 it only checks it in bind(2), which FREEBIND lifts.
fn make_transparent(socket: &Socket, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        IpAddr::V6(_) => socket.set_freebind_v6(true),
    }
}

/// Binds to a reserved port that is free, beginning at a random one.
pub fn bind_reserved(socket: &Socket, address: IpAddr) -> io::Result<()> {
    let first = (random() % u64::from(FIRST_PORTS)) as u16;
    let count = RESERVED_PORTS.len() as u16;
    let mut last = io::Error::from(io::ErrorKind::AddrInUse);
    for i in 0..count {
        let port = RESERVED_PORTS.start + (first + i) % count;
        match socket.bind(&SocketAddr::new(address, port).into()) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => last = error,
            Err(error) => return Err(error),
        }
    }
    Err(last)
}

/// Sends a call and reads records until its reply. Late replies to calls that timed out are skipped.
async fn exchange_tcp(stream: &mut TcpStream, xid: u32, call: &[u8]) -> io::Result<Bytes> {
    stream.write_all(call).await?;
    loop {
        let record = read_record(stream).await?;
        if reply_xid(&record) == Some(xid) {
            return Ok(record);
        }
    }
}

/// Sends a call, again at growing intervals, until its reply comes.
async fn exchange_udp(socket: &UdpSocket, xid: u32, call: &[u8]) -> io::Result<Bytes> {
    let mut wait = UDP_RETRY;
    loop {
        socket.send(&call[RECORD_MARKER..]).await?;
        let again = Instant::now() + wait;
        while let Ok(record) = timeout_at(again, receive_datagram(socket)).await {
            let record = record?;
            if reply_xid(&record) == Some(xid) {
                return Ok(record);
            }
        }
        wait *= 2;
    }
}

/// One record, its fragments joined, with one marker in front.
async fn read_record(stream: &mut TcpStream) -> io::Result<Bytes> {
    let mut record = BytesMut::zeroed(RECORD_MARKER);
    loop {
        let marker = stream.read_u32().await?;
        let length = (marker & !LAST_FRAGMENT) as usize;
        let start = record.len();
        if start + length > MAX_RECORD {
            let error = format!("a reply of more than {MAX_RECORD} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        record.put_bytes(0, length);
        stream.read_exact(&mut record[start..]).await?;
        if marker & LAST_FRAGMENT != 0 {
            return Ok(with_marker(record));
        }
    }
}

/// One datagram, with a marker in front as if it had come over TCP.
async fn receive_datagram(socket: &UdpSocket) -> io::Result<Bytes> {
    const LARGEST: usize = 1 << 16;
    let mut record = BytesMut::zeroed(RECORD_MARKER + LARGEST);
    let length = socket.recv(&mut record[RECORD_MARKER..]).await?;
    record.truncate(RECORD_MARKER + length);
    Ok(with_marker(record))
}

/// Not for secrets: only for transaction IDs and the first port to try.
pub fn random() -> u64 {
    RandomState::new().hash_one(0)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    const PROCEDURE: Procedure = Procedure {
        program: 1,
        program_name: "fake",
        version: 1,
        number: 1,
        name: "ECHO",
    };

    fn endpoint(peer: SocketAddr, transport: Transport) -> Endpoint {
        Endpoint {
            peer,
            transport,
            source: Source::Any,
            credential: Credential::Null,
            deadline: Duration::from_secs(10),
        }
    }

    /// A successful reply with these results, without a marker.
    fn reply(xid: u32, results: u32) -> Vec<u8> {
        [xid, 1, 0, 0, 0, 0, results]
            .into_iter()
            .flat_map(u32::to_be_bytes)
            .collect()
    }

    fn fragment(bytes: &[u8], last: bool) -> Vec<u8> {
        let flag = if last { LAST_FRAGMENT } else { 0 };
        let mut fragment = (flag | bytes.len() as u32).to_be_bytes().to_vec();
        fragment.extend_from_slice(bytes);
        fragment
    }

    #[tokio::test]
    async fn tcp_joins_fragments_and_passes_over_other_transactions() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let call = read_record(&mut stream).await.unwrap();
            let xid = reply_xid(&call).unwrap();
            let ours = reply(xid, 42);
            let mut answer = fragment(&reply(xid.wrapping_add(1), 1), true);
            answer.extend(fragment(&ours[..9], false));
            answer.extend(fragment(&ours[9..], true));
            stream.write_all(&answer).await.unwrap();
            stream
        });
        let mut client = Client::connect(endpoint(peer, Transport::Tcp))
            .await
            .unwrap();
        let results = client.call(&PROCEDURE, &[]).await.unwrap();
        assert_eq!(&results[..], &[0, 0, 0, 42]);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn udp_asks_again_when_a_datagram_is_lost() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let peer = server.local_addr().unwrap();
        let server = tokio::spawn(async move {
            receive_datagram(&server).await.unwrap();
            let mut call = [0; 100];
            let (_, from) = server.recv_from(&mut call).await.unwrap();
            let xid = u32::from_be_bytes(call[..4].try_into().unwrap());
            server.send_to(&reply(xid, 7), from).await.unwrap();
        });
        let mut client = Client::connect(endpoint(peer, Transport::Udp))
            .await
            .unwrap();
        let results = client.call(&PROCEDURE, &[]).await.unwrap();
        assert_eq!(&results[..], &[0, 0, 0, 7]);
        server.await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_stays_silent_is_named_with_the_call_and_the_deadline() {
        let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let peer = silent.local_addr().unwrap();
        let mut endpoint = endpoint(peer, Transport::Udp);
        endpoint.deadline = Duration::from_millis(20);
        let mut client = Client::connect(endpoint).await.unwrap();
        let error = client.call(&PROCEDURE, &[]).await.unwrap_err();
        assert_eq!(
            crate::causes::chain(&error),
            format!("fake v1 ECHO to {peer} over udp: no answer within 20ms")
        );
    }

    #[tokio::test]
    async fn a_record_without_end_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            read_record(&mut stream).await.unwrap();
            stream.write_all(&[0xff; 4]).await.unwrap();
            stream
        });
        let mut client = Client::connect(endpoint(peer, Transport::Tcp))
            .await
            .unwrap();
        let error = client.call(&PROCEDURE, &[]).await.unwrap_err();
        assert!(matches!(error.cause, Cause::Io(_)), "{error}");
        server.await.unwrap();
    }
}
