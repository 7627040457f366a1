//! The host of a lock, as lockd identifies it.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// The NLM version that a client's calls carry. v1 and v3 have 32-bit ranges, v4
/// has 64-bit ones; a host of one version never sees the locks of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub enum NlmVersion {
    V1 = 1,
    V3 = 3,
    V4 = 4,
}

impl From<NlmVersion> for u32 {
    fn from(version: NlmVersion) -> u32 {
        version as u32
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("NLM has no version {0}")]
pub struct NoSuchVersion(pub u32);

impl TryFrom<u32> for NlmVersion {
    type Error = NoSuchVersion;

    fn try_from(number: u32) -> Result<Self, NoSuchVersion> {
        match number {
            1 => Ok(NlmVersion::V1),
            3 => Ok(NlmVersion::V3),
            4 => Ok(NlmVersion::V4),
            other => Err(NoSuchVersion(other)),
        }
    }
}

impl fmt::Display for NlmVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", *self as u32)
    }
}

/// The transport that a client's calls came over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    /// From `nlm_host.h_proto`, an IP protocol number.
    pub fn from_ip_protocol(protocol: u16) -> Option<Self> {
        match protocol {
            6 => Some(Transport::Tcp),
            17 => Some(Transport::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        })
    }
}

/// What identifies a `struct nlm_host` on the server: lockd looks it up by these four
/// (and the network namespace), in `nlmsvc_lookup_host` of fs/lockd/host.c, 6.1
/// to 7.3. Both addresses are canonical: never an IPv4-mapped IPv6 one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Host {
    /// The server address that the client used.
    pub vip: IpAddr,
    pub client: IpAddr,
    pub version: NlmVersion,
    pub transport: Transport,
    /// Inode number of the network namespace, as in `/proc/PID/ns/net`.
    pub netns: u32,
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
