//! NLM calls as bytes, for clients that do with them what no library would: cut
//! them to pieces, send many at once, or send them and wait for no answer.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nlmfo::observe::host::NlmVersion;
use nlmfo::rpc::message::{
    LAST_FRAGMENT, Procedure, RECORD_MARKER, decode_reply, encode_call, reply_xid,
};
use nlmfo::rpc::nlm::{MAX_COOKIE, MAX_FILE_HANDLE, MAX_NAME, MAX_OWNER, PROGRAM, Status};
use nlmfo::rpc::xdr::{Decoder, Encoder};
use socket2::{Domain, Socket, Type};

use super::handles::FileHandle;
use super::locker::Range;
use super::node::TestNode;
use super::raw::credential;

/// Maximum time for an answer, over the worst network of the scenarios.
const DEADLINE: Duration = Duration::from_mins(1);

/// File handles of NLM v1 and v3 have this length, see [`super::raw`].
const OLD_HANDLE: usize = 32;

/// No answer to the calls of this module is longer.
const REPLY_MAX: usize = 4096;

/// What is asked for; every lock is for writing and waits in no queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Test,
    Lock { reclaim: bool },
    Unlock,
    LockMsg { reclaim: bool },
    Share { reclaim: bool },
    NmLock { reclaim: bool },
}

impl Ask {
    fn procedure(self, version: NlmVersion) -> Procedure {
        let (number, name) = match self {
            Ask::Test => (1, "TEST"),
            Ask::Lock { .. } => (2, "LOCK"),
            Ask::Unlock => (4, "UNLOCK"),
            Ask::LockMsg { .. } => (7, "LOCK_MSG"),
            Ask::Share { .. } => (20, "SHARE"),
            Ask::NmLock { .. } => (22, "NM_LOCK"),
        };
        Procedure {
            program: PROGRAM,
            program_name: "NLM",
            version: version.into(),
            number,
            name,
        }
    }
}

/// Numbers of calls. No two of a scenario's are alike, whatever port they come from: a
/// datagram with the number and port of an earlier one is the same call once more.
static NEXT_XID: AtomicU32 = AtomicU32::new(1);

/// The caller, as its calls describe it.
#[derive(Clone, Debug)]
pub struct Caller {
    pub name: String,
    pub owner: Vec<u8>,
    version: NlmVersion,
}

impl Caller {
    pub fn new(name: &str, version: NlmVersion) -> Caller {
        Caller {
            name: name.into(),
            owner: name.into(),
            version,
        }
    }

    /// A call for a range of a file, or for all of it where it is about a SHARE.
    pub fn call(&self, ask: Ask, file: &FileHandle, range: Range) -> Result<Call> {
        const SVID: u32 = 7;
        const EXCLUSIVE: bool = true;
        const BLOCK: bool = false;
        const STATE: u32 = 1;
        const READ: u32 = 1;
        let xid = NEXT_XID.fetch_add(1, Ordering::Relaxed);
        let mut xdr = Encoder::default();
        xdr.opaque("cookie", &xid.to_be_bytes(), MAX_COOKIE)?;
        match ask {
            Ask::Lock { .. } | Ask::LockMsg { .. } | Ask::NmLock { .. } => {
                xdr.bool(BLOCK);
                xdr.bool(EXCLUSIVE);
            }
            Ask::Test => xdr.bool(EXCLUSIVE),
            Ask::Unlock | Ask::Share { .. } => {}
        }
        let mut handle = file.0.clone();
        if self.version != NlmVersion::V4 {
            handle.resize(OLD_HANDLE, 0);
        }
        xdr.opaque("caller", self.name.as_bytes(), MAX_NAME)?;
        xdr.opaque("file handle", &handle, MAX_FILE_HANDLE)?;
        xdr.opaque("owner", &self.owner, MAX_OWNER)?;
        if let Ask::Share { reclaim } = ask {
            // Nothing denied, so that shares do not stand in each other's way.
            xdr.u32(0);
            xdr.u32(READ);
            xdr.bool(reclaim);
        } else {
            xdr.u32(SVID);
            for number in [range.start, range.len] {
                match self.version {
                    NlmVersion::V4 => xdr.u64(number),
                    _ => xdr.u32(number.try_into().context("a range of NLM v3")?),
                }
            }
        }
        if let Ask::Lock { reclaim } | Ask::LockMsg { reclaim } | Ask::NmLock { reclaim } = ask {
            xdr.bool(reclaim);
            xdr.u32(STATE);
        }
        let procedure = ask.procedure(self.version);
        Ok(Call {
            xid,
            record: encode_call(xid, &procedure, &credential(), &xdr.finish()),
        })
    }
}

/// A call, ready to be sent.
#[derive(Clone, Debug)]
pub struct Call {
    pub xid: u32,
    /// With its record marker.
    pub record: Vec<u8>,
}

/// The status in an answer; `None` where the procedure has no result (`LOCK_MSG`).
pub type Answer = Option<Status>;

/// The number of the call that a record answers, and the answer.
fn read_answer(record: Vec<u8>) -> Result<(u32, Answer)> {
    let xid = reply_xid(&record).context("a reply without a number")?;
    let results = decode_reply(record.into()).with_context(|| format!("call {xid}"))?;
    if results.is_empty() {
        return Ok((xid, None));
    }
    let mut xdr = Decoder::new(&results);
    xdr.opaque("cookie", MAX_COOKIE)?;
    Ok((xid, Some(xdr.u32("status")?.try_into()?)))
}

/// An end of a connection or datagrams, with any port of its own.
fn socket(kind: Type, source: Option<IpAddr>, peer: SocketAddr) -> Result<Socket> {
    let (domain, any): (_, IpAddr) = match peer {
        SocketAddr::V4(_) => (Domain::IPV4, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (Domain::IPV6, Ipv6Addr::UNSPECIFIED.into()),
    };
    let socket = Socket::new(domain, kind, None)?;
    let source = source.unwrap_or(any);
    socket
        .bind(&SocketAddr::new(source, 0).into())
        .with_context(|| format!("binding to {source}"))?;
    socket
        .connect(&peer.into())
        .with_context(|| format!("connecting {source} to {peer}"))?;
    socket.set_read_timeout(Some(DEADLINE))?;
    Ok(socket)
}

/// A connection to lockd.
#[derive(Debug)]
pub struct Stream(TcpStream);

impl Stream {
    /// From `source`, or from whichever address `place` takes for this peer. What is
    /// written goes out at once.
    pub fn connect(node: &TestNode, source: Option<IpAddr>, peer: SocketAddr) -> Result<Stream> {
        let socket = node.within(|| socket(Type::STREAM, source, peer))?;
        socket.set_tcp_nodelay(true)?;
        Ok(Stream(socket.into()))
    }

    pub fn tcp(&self) -> &TcpStream {
        &self.0
    }

    /// The client's address and lockd's, of IPv4.
    pub fn ends(&self) -> Result<(Ipv4Addr, Ipv4Addr)> {
        match (self.0.local_addr()?.ip(), self.0.peer_addr()?.ip()) {
            (IpAddr::V4(client), IpAddr::V4(lockd)) => Ok((client, lockd)),
            others => anyhow::bail!("{others:?} are no IPv4 addresses"),
        }
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write_all(bytes).context("sending to lockd")
    }

    /// Sends in pieces of so many bytes, the first one of `first`.
    pub fn send_in_pieces(&mut self, bytes: &[u8], first: usize, piece: usize) -> Result<()> {
        let (head, rest) = bytes.split_at(first.min(bytes.len()));
        self.send(head)?;
        rest.chunks(piece).try_for_each(|piece| self.send(piece))
    }

    /// The next `count` answers, in the order in which they come, by call.
    pub fn answers(&mut self, count: usize) -> Result<BTreeMap<u32, Vec<Answer>>> {
        let mut answers = BTreeMap::<u32, Vec<Answer>>::new();
        for nth in 1..=count {
            let (xid, answer) = self
                .answer()
                .with_context(|| format!("answer {nth} of {count}"))?;
            answers.entry(xid).or_default().push(answer);
        }
        Ok(answers)
    }

    fn answer(&mut self) -> Result<(u32, Answer)> {
        let mut record = vec![0; RECORD_MARKER];
        self.0.read_exact(&mut record)?;
        let marker = u32::from_be_bytes(record[..].try_into().expect("a marker's length"));
        let length = (marker & !LAST_FRAGMENT) as usize;
        ensure!(
            marker & LAST_FRAGMENT != 0 && length <= REPLY_MAX,
            "record marker {marker:#x}"
        );
        record.resize(RECORD_MARKER + length, 0);
        self.0.read_exact(&mut record[RECORD_MARKER..])?;
        read_answer(record)
    }

    /// Sends one call and waits for its answer.
    pub fn ask(&mut self, call: &Call) -> Result<Answer> {
        self.send(&call.record)?;
        let (xid, answer) = self.answer()?;
        ensure!(xid == call.xid, "call {} was answered as {xid}", call.xid);
        Ok(answer)
    }

    /// Waits for what comes next, which must be the connection's reset.
    pub fn await_reset(&mut self) -> Result<()> {
        let mut byte = [0];
        match self.0.read(&mut byte) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            other => anyhow::bail!("instead of a reset: {other:?}"),
        }
    }
}

/// Datagrams to lockd.
#[derive(Debug)]
pub struct Datagrams(UdpSocket);

impl Datagrams {
    /// As [`Stream::connect`].
    pub fn connect(node: &TestNode, source: Option<IpAddr>, peer: SocketAddr) -> Result<Datagrams> {
        let socket = node.within(|| socket(Type::DGRAM, source, peer))?;
        Ok(Datagrams(socket.into()))
    }

    /// Continues with another peer, from the same port.
    pub fn redirect(&self, peer: SocketAddr) -> Result<()> {
        (self.0.connect(peer)).with_context(|| format!("connecting to {peer}"))
    }

    pub fn send(&self, call: &Call) -> Result<()> {
        self.0
            .send(&call.record[RECORD_MARKER..])
            .context("sending to lockd")?;
        Ok(())
    }

    /// The next answer that comes.
    pub fn answer(&self) -> Result<(u32, Answer)> {
        let mut record = vec![0; RECORD_MARKER + REPLY_MAX];
        let length = self.0.recv(&mut record[RECORD_MARKER..])?;
        record.truncate(RECORD_MARKER + length);
        let marker = LAST_FRAGMENT | u32::try_from(length)?;
        record[..RECORD_MARKER].copy_from_slice(&marker.to_be_bytes());
        read_answer(record)
    }

    /// Sends one call and waits for its answer.
    pub fn ask(&self, call: &Call) -> Result<Answer> {
        self.send(call)?;
        let (xid, answer) = self.answer()?;
        ensure!(xid == call.xid, "call {} was answered as {xid}", call.xid);
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_one_record_with_its_number_and_reclaim_word() {
        let caller = Caller::new("raw1", NlmVersion::V4);
        let file = FileHandle(vec![1; 28]);
        let ask = Ask::NmLock { reclaim: true };
        let call = caller.call(ask, &file, Range::new(3, 5)).unwrap();
        let record = &call.record;
        let marker = LAST_FRAGMENT | (record.len() - RECORD_MARKER) as u32;
        assert_eq!(record[..4], marker.to_be_bytes());
        assert_eq!(reply_xid(record), Some(call.xid));
        assert_eq!(record[record.len() - 8..], [0, 0, 0, 1, 0, 0, 0, 1]);
    }

    #[test]
    fn an_answer_is_read_by_the_number_of_its_call() {
        let marker = LAST_FRAGMENT | 32;
        let words: [u32; 9] = [marker, 9, 1, 0, 0, 0, 0, 0, 4];
        let record: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let answer = Some(Status::DeniedGracePeriod);
        assert_eq!(read_answer(record).unwrap(), (9, answer));
    }
}
