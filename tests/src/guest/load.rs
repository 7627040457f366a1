//! The load generator: NLM v4 over TCP from many source addresses, with calls
//! made ready beforehand, so that the machine's time goes to lockd.
//!
//! lockd is one thread and answers a connection in order, so calls are sent in
//! batches without waiting for each reply. It also closes the oldest of more
//! than about a thousand connections: locks are taken and the connection is
//! closed, which lockd's hosts and locks outlive.

use std::io::{BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use nlmfo::rpc::message::{Procedure, encode_call};
use nlmfo::rpc::nlm::PROGRAM;
use nlmfo::rpc::xdr::Encoder;
use serde::Serialize;
use socket2::{Domain, Socket, Type};

use super::handles::FileHandle;
use super::raw::{RawNet, address, credential};

/// LOCK+UNLOCK pairs sent before their replies are read.
const BATCH: usize = 16;

/// Pairs between two questions of [`pairs_while`] whether to go on.
pub const PAIRS_AT_ONCE: usize = BATCH;

const TIMEOUT: Duration = Duration::from_mins(1);

/// Whether lockd tells statd of a client that locks. The first LOCK of a
/// monitored client costs an upcall and a record on disk; NM_LOCK does not
/// (`nlm4svc_proc_nm_lock` clears `monitor`, fs/lockd/svc4proc.c, 6.1 to 6.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Monitoring {
    Monitored,
    Unmonitored,
}

impl Monitoring {
    fn lock_procedure(self) -> (u32, &'static str) {
        match self {
            Monitoring::Monitored => (2, "LOCK"),
            Monitoring::Unmonitored => (22, "NM_LOCK"),
        }
    }
}

/// The result of a run of LOCK+UNLOCK pairs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Rate {
    pub pairs: u64,
    pub seconds: f64,
}

impl Rate {
    pub fn per_second(self) -> f64 {
        self.pairs as f64 / self.seconds
    }
}

/// Locks and unlocks, as fast as lockd answers, from one connection per file
/// and client address, for `duration`.
///
/// # Errors
/// If any reply is not *granted*.
pub fn pairs(
    net: &RawNet,
    vip: IpAddr,
    files: &[FileHandle],
    monitoring: Monitoring,
    duration: Duration,
) -> Result<Rate> {
    let end = Instant::now() + duration;
    pairs_while(net, vip, files, monitoring, || Instant::now() < end)
}

/// [`pairs`] for as long as `go_on` says so.
pub fn pairs_while(
    net: &RawNet,
    vip: IpAddr,
    files: &[FileHandle],
    monitoring: Monitoring,
    go_on: impl Fn() -> bool + Sync,
) -> Result<Rate> {
    let lockd = net.lockd(vip, NlmVersion::V4, Transport::Tcp)?;
    let connections = files
        .iter()
        .enumerate()
        .map(|(i, file)| {
            let number = u16::try_from(i + 1).context("at most 65,535 clients")?;
            let stream = connect(net, address(number, vip), lockd)?;
            let mut calls = Vec::new();
            for _ in 0..BATCH {
                calls.extend(lock_call(number, file, (1, 0, monitoring, false))?);
                calls.extend(unlock_call(number, file, 1, 0)?);
            }
            Ok((stream, calls))
        })
        .collect::<Result<Vec<_>>>()?;

    let start = Barrier::new(connections.len() + 1);
    thread::scope(|scope| {
        let running: Vec<_> = connections
            .into_iter()
            .map(|(stream, calls)| {
                let (start, go_on) = (&start, &go_on);
                scope.spawn(move || {
                    let mut stream = BufReader::new(stream);
                    start.wait();
                    let mut pairs = 0;
                    while go_on() {
                        exchange(&mut stream, &calls, 2 * BATCH)?;
                        pairs += BATCH as u64;
                    }
                    Ok(pairs)
                })
            })
            .collect();
        start.wait();
        let started = Instant::now();
        let pairs = running
            .into_iter()
            .map(|thread| thread.join().expect("a load thread does not panic"))
            .sum::<Result<u64>>()?;
        Ok(Rate {
            pairs,
            seconds: started.elapsed().as_secs_f64(),
        })
    })
}

/// How many locks are taken, and how they are spread.
#[derive(Clone, Copy, Debug)]
pub struct Holding<'a> {
    pub vips: &'a [IpAddr],
    /// Client addresses of each family, numbered from 1.
    pub clients: u16,
    /// Locks of each client through each VIP.
    pub locks: u32,
    pub monitoring: Monitoring,
}

/// Takes locks of one byte each and leaves them: client `c` has lock `l`
/// through VIP `v` on a file chosen by `l`, at an offset that nobody else uses
/// and that touches no other lock, so the kernel merges none of them.
///
/// # Errors
/// If any reply is not *granted*.
pub fn hold(net: &RawNet, files: &[FileHandle], holding: Holding<'_>) -> Result<()> {
    for vip in 0..holding.vips.len() {
        for client in 1..=holding.clients {
            ask(net, files, holding, (vip, client), false)?;
        }
    }
    Ok(())
}

/// Reclaims what [`hold`] took for one client through the VIP of this index.
///
/// # Errors
/// If any reply is not *granted*.
pub fn reclaim(
    net: &RawNet,
    files: &[FileHandle],
    holding: Holding<'_>,
    vip: usize,
    client: u16,
) -> Result<()> {
    ask(net, files, holding, (vip, client), true)
}

/// All locks of one client, by its number and the VIP's.
fn ask(
    net: &RawNet,
    files: &[FileHandle],
    holding: Holding<'_>,
    (vip, client): (usize, u16),
    reclaim: bool,
) -> Result<()> {
    ensure!(!files.is_empty(), "no file to lock");
    let address_there = holding.vips[vip];
    let lockd = net.lockd(address_there, NlmVersion::V4, Transport::Tcp)?;
    let source = address(client, address_there);
    let mut stream = BufReader::new(connect(net, source, lockd)?);
    let first = (vip * usize::from(holding.clients) + usize::from(client - 1)) as u64
        * u64::from(holding.locks);
    // Batches stay below what lockd buffers, so neither side waits to write while the
    // other does.
    let locks: Vec<u64> = (first..first + u64::from(holding.locks)).collect();
    for batch in locks.chunks(2 * BATCH) {
        let mut calls = Vec::new();
        for &nth in batch {
            let file = &files[nth as usize % files.len()];
            let offset = 2 * (nth / files.len() as u64);
            let lock = (1, offset, holding.monitoring, reclaim);
            calls.extend(lock_call(client, file, lock)?);
        }
        exchange(&mut stream, &calls, batch.len())
            .with_context(|| format!("client {client} through {address_there}"))?;
    }
    Ok(())
}

fn connect(net: &RawNet, source: IpAddr, lockd: SocketAddr) -> Result<TcpStream> {
    net.node().within(|| {
        let socket = Socket::new(Domain::for_address(lockd), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket
            .bind(&SocketAddr::new(source, 0).into())
            .with_context(|| format!("bind to {source}"))?;
        socket
            .connect(&lockd.into())
            .with_context(|| format!("connect from {source} to {lockd}"))?;
        socket.set_tcp_nodelay(true)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        Ok(socket.into())
    })
}

/// Sends `calls` and reads `replies`, each of which must say *granted*.
fn exchange(stream: &mut BufReader<TcpStream>, calls: &[u8], replies: usize) -> Result<()> {
    stream.get_mut().write_all(calls).context("sending calls")?;
    let mut record = Vec::new();
    for _ in 0..replies {
        let mut marker = [0; 4];
        stream
            .read_exact(&mut marker)
            .context("waiting for a reply")?;
        let length = u32::from_be_bytes(marker) & !nlmfo::rpc::message::LAST_FRAGMENT;
        record.resize(length as usize, 0);
        stream.read_exact(&mut record).context("reading a reply")?;
        check_granted(&record)?;
    }
    Ok(())
}

/// The cookie of every call; lockd makes four zero bytes of an empty one.
const COOKIE: [u8; 4] = [0; 4];

/// A granted `nlm4_res`: xid, REPLY, accepted, an empty verifier, success, the
/// cookie with its length in front, status 0.
fn check_granted(record: &[u8]) -> Result<()> {
    const GRANTED: [u8; 32] = {
        let mut words = [0; 32];
        words[3] = 1;
        words[23] = COOKIE.len() as u8;
        words
    };
    if record.get(4..) != Some(&GRANTED[..]) {
        bail!("a call was not granted; the reply is {record:02x?}");
    }
    Ok(())
}

/// A LOCK of svid, offset, monitoring and whether it is a reclaim.
fn lock_call(
    client: u16,
    file: &FileHandle,
    (svid, offset, monitoring, reclaim): (u32, u64, Monitoring, bool),
) -> Result<Vec<u8>> {
    let mut arguments = Encoder::default();
    arguments.opaque("cookie", &COOKIE, COOKIE.len())?;
    arguments.bool(false); // block
    arguments.bool(true); // exclusive
    lock_arguments(&mut arguments, client, file, svid, offset)?;
    arguments.bool(reclaim);
    arguments.u32(1); // state
    let (number, name) = monitoring.lock_procedure();
    Ok(call(number, name, arguments))
}

fn unlock_call(client: u16, file: &FileHandle, svid: u32, offset: u64) -> Result<Vec<u8>> {
    let mut arguments = Encoder::default();
    arguments.opaque("cookie", &COOKIE, COOKIE.len())?;
    lock_arguments(&mut arguments, client, file, svid, offset)?;
    Ok(call(4, "UNLOCK", arguments))
}

fn lock_arguments(
    arguments: &mut Encoder,
    client: u16,
    file: &FileHandle,
    svid: u32,
    offset: u64,
) -> Result<()> {
    let name = format!("raw{client}");
    arguments.opaque("caller", name.as_bytes(), 64)?;
    arguments.opaque("file handle", &file.0, 64)?;
    arguments.opaque("owner", name.as_bytes(), 64)?;
    arguments.u32(svid);
    arguments.u64(offset);
    arguments.u64(1);
    Ok(())
}

/// The transaction number is the same in every call: replies come in order,
/// and lockd keeps no cache of replies.
fn call(number: u32, name: &'static str, arguments: Encoder) -> Vec<u8> {
    let procedure = Procedure {
        program: PROGRAM,
        program_name: "NLM",
        version: 4,
        number,
        name,
    };
    encode_call(1, &procedure, &credential(), &arguments.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(words: [u32; 9]) -> Vec<u8> {
        words.into_iter().flat_map(u32::to_be_bytes).collect()
    }

    #[test]
    fn only_a_granted_reply_passes() {
        assert!(check_granted(&reply([7, 1, 0, 0, 0, 0, 4, 0, 0])).is_ok());
        let denied = check_granted(&reply([7, 1, 0, 0, 0, 0, 4, 0, 1]));
        assert!(denied.unwrap_err().to_string().contains("not granted"));
        assert!(check_granted(&[]).is_err());
    }

    #[test]
    fn calls_are_whole_records() {
        let file = FileHandle(vec![1; 20]);
        let call = lock_call(3, &file, (1, 0, Monitoring::Unmonitored, false)).unwrap();
        let length = u32::from_be_bytes(call[..4].try_into().unwrap());
        assert_eq!((length & 0x7fff_ffff) as usize, call.len() - 4);
        assert_eq!(u32::from_be_bytes(call[24..28].try_into().unwrap()), 22);
    }
}
