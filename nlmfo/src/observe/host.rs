//! The host of a lock, as lockd identifies it.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use nlmfo_common::protocol::{NlmVersion, Transport};

/// What identifies a `struct nlm_host` on the server: lockd looks it up by these four
/// (and the network namespace), in `nlmsvc_lookup_host` of fs/lockd/host.c, 6.1
/// to 7.3. Both addresses are canonical: never an IPv4-mapped IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Host {
    /// The server address that the client used.
    pub vip: IpAddr,
    /// The client's address, where its calls come from.
    pub client: IpAddr,
    /// The NLM version that it speaks.
    pub version: NlmVersion,
    /// TCP or UDP, for its calls to lockd.
    pub transport: Transport,
    /// Inode number of the network namespace, as in `/proc/PID/ns/net`.
    pub netns: u32,
}

#[cfg(test)]
impl Host {
    /// A client of NLM 4 over TCP, in network namespace 1.
    pub fn sample(vip: impl Into<IpAddr>, client: impl Into<IpAddr>) -> Self {
        Host {
            vip: vip.into(),
            client: client.into(),
            version: NlmVersion::V4,
            transport: Transport::Tcp,
            netns: 1,
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} via {} ({}, {})",
            self.client, self.vip, self.version, self.transport
        )
    }
}
