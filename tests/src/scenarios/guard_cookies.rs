//! SYN cookies: a listener that sends them takes a connection whose SYN was not the last one, so
//! the gate may follow another connection than TCP has.

use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use socket2::{Domain, Protocol, Socket, Type};

use super::guard::counts;
use super::{Context, End, Scenario};
use crate::guest::command::run;
use crate::guest::crafted::{self, ACK, PUSH, SYN, TCP, Wire};
use crate::guest::gated::{ensure_answers, open, window};
use crate::guest::node::TestNode;
use crate::guest::tool::Tool;
use crate::guest::wait::{Seen, until};
use crate::guest::wire::{Ask, Caller};
use crate::guest::wired::{GRANTED, REFUSED, VIP, Wired};

pub const SCENARIOS: &[Scenario] = &[Scenario {
    name: "guard-syn-cookies",
    claim: "in a window, a lock by a connection that an earlier SYN's cookie opens is not granted; \
            connections opened by their own cookies are answered as in grace",
    run: cookies,
    ..Scenario::DEFAULT
}];

const NEW: Ask = Ask::NmLock { reclaim: false };
const RECLAIM: Ask = Ask::NmLock { reclaim: true };

/// Of a raw client, whose segments are made by hand.
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 78, 99, 1);
const FIRST_PORT: u16 = 911;

/// How a client sends a call on a connection that the cookie of its first SYN opens, after a
/// second SYN.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// With the cookie.
    AtOnce,
    /// After the cookie.
    Later,
    /// After the bytes that follow it, which begin where the second SYN says.
    Behind,
}

/// A TCP client whose segments are built by hand.
struct HandMade {
    wire: Wire,
    /// What the client gets.
    replies: Socket,
    ends: (SocketAddrV4, SocketAddrV4),
}

impl HandMade {
    fn new(wired: &Wired) -> Result<HandMade> {
        const PATIENCE: Duration = Duration::from_secs(20);
        let node = wired.net.node();
        // No socket takes what the server sends: the client's kernel would reset the connection.
        let rules = format!(
            "table ip handmade {{ chain out {{ type filter hook output priority 0; \
             ip saddr {CLIENT} tcp flags & rst == rst drop; }}; }}"
        );
        run(node.command("nft").arg(&rules))?;
        let replies = node.within(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP))?;
            socket.bind(&SocketAddr::from((CLIENT, 0)).into())?;
            Ok(socket)
        })?;
        replies.set_read_timeout(Some(PATIENCE))?;
        let lockd = wired
            .net
            .lockd(wired.lab.vips[0], NlmVersion::V4, Transport::Tcp)?;
        let SocketAddr::V4(lockd) = lockd else {
            bail!("{VIP} is an IPv4 address");
        };
        Ok(HandMade {
            wire: Wire::new(node, "br0")?,
            replies,
            ends: (SocketAddrV4::new(CLIENT, FIRST_PORT), lockd),
        })
    }

    fn send(&self, flags: u8, numbers: (u32, u32), payload: &[u8]) -> Result<()> {
        let segment = crafted::tcp(self.ends, flags, numbers, payload)?;
        let (from, to) = (*self.ends.0.ip(), *self.ends.1.ip());
        self.wire.send(0, &crafted::ipv4(TCP, from, to, &segment)?)
    }

    /// Sends a SYN with this sequence number. Returns what acknowledges the server's answer,
    /// which is its cookie.
    fn syn(&self, number: u32) -> Result<u32> {
        self.send(SYN, (number, 0), &[])?;
        let expected = number.wrapping_add(1);
        loop {
            let (seq, ack, flags) = self.reply().context("the answer to a SYN")?;
            if flags == SYN | ACK && ack == expected {
                return Ok(seq.wrapping_add(1));
            }
        }
    }

    /// The sequence number, acknowledgement number and flags of the next segment for this port.
    fn reply(&self) -> Result<(u32, u32, u8)> {
        loop {
            let mut buffer = [MaybeUninit::uninit(); 2048];
            let len = self.replies.recv(&mut buffer)?;
            // SAFETY: the kernel has written that many bytes.
            let packet = unsafe { buffer[..len].assume_init_ref() };
            let segment = &packet[usize::from(packet[0] & 0xf) * 4..];
            let word = |at: usize| u32::from_be_bytes(segment[at..at + 4].try_into().unwrap());
            if segment[2..4] == self.ends.0.port().to_be_bytes() {
                return Ok((word(4), word(8), segment[13]));
            }
        }
    }

    /// Sends a call on a connection that the first of two cookies opens.
    fn call(&mut self, way: Way, call: &[u8]) -> Result<()> {
        const FIRST: u32 = 1_000_000;
        let start = FIRST + 1;
        let behind = start + call.len() as u32;
        let second = match way {
            Way::Behind => behind - 1,
            Way::AtOnce | Way::Later => FIRST + 500_000,
        };
        // A record of zeros, which concerns nobody.
        let mut decoy = vec![0; 40];
        decoy[..4].copy_from_slice(&(1u32 << 31 | 36).to_be_bytes());
        self.ends.0.set_port(self.ends.0.port() + 1);
        let ack = self.syn(FIRST)?;
        self.syn(second)?;
        match way {
            Way::AtOnce => {}
            Way::Later => self.send(ACK, (start, ack), &[])?,
            Way::Behind => {
                self.send(ACK, (start, ack), &[])?;
                self.send(PUSH | ACK, (behind, ack), &decoy)?;
            }
        }
        self.send(PUSH | ACK, (start, ack), call)
    }
}

fn cookies(context: &Context) -> Result<End> {
    let root = TestNode::root();
    let tool = Tool::new(&context.nlmfo, &root);
    let mut wired = Wired::up()?;
    // Always, not only when too many connections wait.
    const ALWAYS: &str = "2";
    root.write("/proc/sys/net/ipv4/tcp_syncookies", ALWAYS)?;
    let mut client = HandMade::new(&wired)?;
    let caller = Caller::new("handmade", NlmVersion::V4);

    // Without a window each way leads to a lock: TCP takes the connection.
    for way in [Way::AtOnce, Way::Later, Way::Behind] {
        let range = wired.range();
        let call = caller.call(NEW, &wired.file, range)?;
        client.call(way, &call.record)?;
        wired.held.insert(range.start);
        until(&format!("a lock without a window, {way:?}"), || {
            Ok(match wired.ensure_held() {
                Ok(()) => Seen::Yes(()),
                Err(other) => Seen::No(format!("{other:#}")),
            })
        })?;
    }

    open(&tool, &[VIP])?;
    let vip = wired.lab.vips[0];
    for way in [Way::AtOnce, Way::Later, Way::Behind] {
        for ask in [NEW, RECLAIM] {
            let before = stopped(vip)?;
            let range = wired.range();
            let call = caller.call(ask, &wired.file, range)?;
            client.call(way, &call.record)?;
            until(&format!("the gate: {way:?}, {ask:?}"), || {
                let now = stopped(vip)?;
                Ok(match now > before {
                    true => Seen::Yes(()),
                    false => Seen::No(format!("{now} packets stopped")),
                })
            })?;
            wired
                .ensure_held()
                .with_context(|| format!("{way:?}, {ask:?}"))?;
        }
    }

    for _ in 0..3 {
        let (caller, mut stream) = wired.stream(vip, NlmVersion::V4)?;
        for (reclaim, expected) in [(false, REFUSED), (true, GRANTED)] {
            let answer = wired.ask(&caller, &mut stream, reclaim)?;
            ensure!(answer == expected, "reclaim {reclaim}: {answer:?}");
        }
    }
    wired.ensure_held()?;
    ensure_answers(&window(&tool, VIP)?, 3, 3)?;
    Ok(End::Pass)
}

/// How many packets and connections the gate and the guard have stopped.
fn stopped(vip: IpAddr) -> Result<u64> {
    let (gated, _) = counts(vip)?;
    Ok(gated.dropped + gated.closed + gated.guarded)
}
