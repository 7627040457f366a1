//! Decides which datagrams to send, and when. Pure: the time, answers and network errors come in,
//! datagrams and outcomes go out.
//!
//! For each client: ask its rpcbind for statd's port, then send its statd one name after
//! the other. What is not answered is sent again, at growing intervals, until the caller
//! gives up. A client that refuses may be starting up, and is asked again too.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;

use crate::rpc::message::{
    Credential, RECORD_MARKER, Refusal, datagram_as_record, decode_reply, encode_call, reply_xid,
};
use crate::rpc::{nsm, portmap};

/// Number of unanswered SM_NOTIFYs after which rpcbind is asked again: statd may have a new port.
const TRIES_AT_A_PORT: u32 = 4;

/// Time to wait for an answer.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Time until the first repetition; doubled for each further one.
    pub first: Duration,
    /// Maximum time between repetitions.
    pub slowest: Duration,
    /// Minimum time after a refusal.
    pub refused: Duration,
    /// Time until a datagram is sent again that this node had no buffer for.
    pub put_off: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Pace {
            first: Duration::from_millis(250),
            slowest: Duration::from_secs(4),
            refused: Duration::from_secs(2),
            put_off: Duration::from_millis(10),
        }
    }
}

/// The last answer or error of a client that is not notified yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Sign {
    #[error("no answer")]
    None,
    /// Reported by this node's network or by a router.
    #[error("{0}")]
    Network(String),
    #[error("rpcbind's port is closed")]
    NoRpcbind,
    #[error("statd is not registered with rpcbind over UDP")]
    NotRegistered,
    #[error("statd's port {0} is closed")]
    Closed(u16),
    #[error("rpcbind answered but statd does not")]
    StatdSilent,
    #[error("{who} answered: {refusal}")]
    Refused { who: &'static str, refusal: Refusal },
}

impl Sign {
    /// Whether the client itself has answered.
    pub fn is_of_life(&self) -> bool {
        !matches!(self, Sign::None | Sign::Network(_) | Sign::StatdSilent)
    }
}

/// A datagram to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outgoing {
    pub to: SocketAddr,
    pub datagram: Bytes,
}

/// The progress of one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    pub client: IpAddr,
    /// Number of names that its statd has confirmed.
    pub names: usize,
    /// When it confirmed the last one; none until then.
    pub told: Option<Duration>,
    pub last: Sign,
    /// Datagrams that were sent to it.
    pub sent: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    AskPort,
    Notify { port: u16 },
}

#[derive(Debug)]
struct Talk {
    progress: Progress,
    step: Step,
    /// Of the step's call, whose repetitions have the same.
    xid: u32,
    /// How often it has been sent.
    tries: u32,
    wait: Duration,
    due: Duration,
}

impl Talk {
    fn peer(&self) -> SocketAddr {
        let port = match self.step {
            Step::AskPort => portmap::PORT,
            Step::Notify { port } => port,
        };
        SocketAddr::new(self.progress.client, port)
    }
}

/// The exchanges with all clients. Times are since the start.
#[derive(Debug)]
pub struct Machine {
    /// SM_NOTIFY's arguments under each name.
    arguments: Vec<Bytes>,
    pace: Pace,
    talks: Vec<Talk>,
    by_address: HashMap<IpAddr, usize>,
    /// When each exchange continues; an entry that differs from `due` is stale.
    queue: BinaryHeap<Reverse<(Duration, usize)>>,
    next_xid: u32,
    pending: usize,
}

impl Machine {
    /// `arguments` are SM_NOTIFY's, one for each name ([`nsm::statd_arguments`]); `xid`
    /// is the first transaction ID, a random one. A client is notified once.
    pub fn new(
        clients: impl IntoIterator<Item = IpAddr>,
        arguments: Vec<Bytes>,
        pace: Pace,
        xid: u32,
    ) -> Self {
        let mut machine = Machine {
            arguments,
            pace,
            talks: Vec::new(),
            by_address: HashMap::new(),
            queue: BinaryHeap::new(),
            next_xid: xid,
            pending: 0,
        };
        for client in clients {
            let index = machine.talks.len();
            if machine.by_address.contains_key(&client) {
                continue;
            }
            machine.by_address.insert(client, index);
            machine.talks.push(Talk {
                progress: Progress {
                    client,
                    names: 0,
                    told: None,
                    last: Sign::None,
                    sent: 0,
                },
                step: Step::AskPort,
                xid: 0,
                tries: 0,
                wait: Duration::ZERO,
                due: Duration::ZERO,
            });
            machine.pending += 1;
            machine.go_on(index, Step::AskPort, Duration::ZERO);
        }
        machine
    }

    /// Whether all clients are notified.
    pub fn is_done(&self) -> bool {
        self.pending == 0
    }

    /// When [`Machine::send`] has something next.
    pub fn next_due(&mut self) -> Option<Duration> {
        while let Some(&Reverse((due, index))) = self.queue.peek() {
            if self.is_current(due, index) {
                return Some(due);
            }
            self.queue.pop();
        }
        None
    }

    /// Returns the next datagram that is due and counts it as sent.
    pub fn send(&mut self, now: Duration) -> Option<Outgoing> {
        if self.next_due()? > now {
            return None;
        }
        let Reverse((_, index)) = self.queue.pop()?;
        let talk = &self.talks[index];
        if matches!(talk.step, Step::Notify { .. }) && talk.tries >= TRIES_AT_A_PORT {
            self.go_on(index, Step::AskPort, now);
        }
        let pace = self.pace;
        let talk = &mut self.talks[index];
        let datagram = match talk.step {
            Step::AskPort => {
                let (program, version) = (nsm::STATD.program, nsm::STATD.version);
                let (procedure, arguments) =
                    portmap::udp_port_call(talk.progress.client, program, version);
                encode_call(talk.xid, &procedure, &Credential::Null, &arguments)
            }
            Step::Notify { .. } => {
                let arguments = &self.arguments[talk.progress.names];
                encode_call(talk.xid, &nsm::STATD, &Credential::Null, arguments)
            }
        };
        let outgoing = Outgoing {
            to: talk.peer(),
            datagram: Bytes::from(datagram).slice(RECORD_MARKER..),
        };
        talk.tries += 1;
        talk.progress.sent += 1;
        talk.due = now + talk.wait;
        talk.wait = (talk.wait * 2).min(pace.slowest);
        self.queue.push(Reverse((talk.due, index)));
        Some(outgoing)
    }

    /// The last datagram of [`Machine::send`] for this peer was not sent: this node had no buffer
    /// for it.
    pub fn put_off(&mut self, now: Duration, to: SocketAddr) {
        let Some(index) = self.exchange_with(to) else {
            return;
        };
        let put_off = now + self.pace.put_off;
        let talk = &mut self.talks[index];
        talk.progress.sent -= 1;
        talk.tries -= 1;
        talk.due = put_off;
        self.queue.push(Reverse((put_off, index)));
    }

    /// Handles a received datagram. Ignores those that answer no pending call: repetitions, late
    /// answers, and datagrams of others.
    pub fn received(&mut self, now: Duration, from: SocketAddr, datagram: &[u8]) {
        let record = datagram_as_record(datagram);
        let Some(index) = self.exchange_with(from) else {
            return;
        };
        let talk = &mut self.talks[index];
        if reply_xid(&record) != Some(talk.xid) {
            return;
        }
        let results = decode_reply(record);
        match talk.step {
            Step::AskPort => {
                let port = results.and_then(|results| {
                    portmap::udp_port(talk.progress.client, &results)
                        .map_err(|error| Refusal::Malformed(error.to_string()))
                });
                match port {
                    Ok(Some(port)) => {
                        talk.progress.last = Sign::StatdSilent;
                        self.go_on(index, Step::Notify { port }, now);
                    }
                    Ok(None) => self.refused(index, Sign::NotRegistered, now),
                    Err(refusal) => {
                        let who = "rpcbind";
                        self.refused(index, Sign::Refused { who, refusal }, now);
                    }
                }
            }
            Step::Notify { port } => match results {
                Ok(_) => {
                    talk.progress.names += 1;
                    if talk.progress.names < self.arguments.len() {
                        self.go_on(index, Step::Notify { port }, now);
                    } else {
                        talk.progress.told = Some(now);
                        self.pending -= 1;
                    }
                }
                Err(refusal) => {
                    let who = "statd";
                    self.refused(index, Sign::Refused { who, refusal }, now);
                }
            },
        }
    }

    /// Handles a network error for a datagram to this peer.
    pub fn failed(&mut self, now: Duration, to: SocketAddr, error: &io::Error) {
        let Some(index) = self.exchange_with(to) else {
            return;
        };
        let talk = &mut self.talks[index];
        match (error.kind(), talk.step) {
            (io::ErrorKind::ConnectionRefused, Step::AskPort) => {
                self.refused(index, Sign::NoRpcbind, now);
            }
            (io::ErrorKind::ConnectionRefused, Step::Notify { port }) => {
                self.refused(index, Sign::Closed(port), now);
            }
            // Continue at the usual pace: the error may be temporary.
            _ => talk.progress.last = Sign::Network(error.to_string()),
        }
    }

    /// The progress of each client, in the given order.
    pub fn progress(&self) -> impl Iterator<Item = &Progress> {
        self.talks.iter().map(|talk| &talk.progress)
    }

    /// The exchange that waits for an answer from this address and port.
    fn exchange_with(&self, peer: SocketAddr) -> Option<usize> {
        let &index = self.by_address.get(&peer.ip())?;
        let talk = &self.talks[index];
        (talk.progress.told.is_none() && talk.peer().port() == peer.port()).then_some(index)
    }

    fn is_current(&self, due: Duration, index: usize) -> bool {
        let talk = &self.talks[index];
        talk.progress.told.is_none() && talk.due == due
    }

    /// After a refusal: starts again later.
    fn refused(&mut self, index: usize, sign: Sign, now: Duration) {
        let talk = &mut self.talks[index];
        talk.progress.last = sign;
        let wait = talk.wait.clamp(self.pace.refused, self.pace.slowest);
        self.go_on(index, Step::AskPort, now + wait);
        self.talks[index].wait = wait;
    }

    /// A new call, to be sent first at `due`.
    fn go_on(&mut self, index: usize, step: Step, due: Duration) {
        let talk = &mut self.talks[index];
        talk.step = step;
        talk.xid = self.next_xid;
        self.next_xid = self.next_xid.wrapping_add(1);
        talk.tries = 0;
        talk.wait = self.pace.first;
        talk.due = due;
        self.queue.push(Reverse((due, index)));
    }
}

#[cfg(test)]
mod tests;
