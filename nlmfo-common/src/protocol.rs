//! NLM versions, transports and lock modes.

use core::fmt;

#[cfg(feature = "serde")]
use serde::{Deserialize, Serialize};

/// The NLM version that a client's calls carry. v1 and v3 have 32-bit ranges, v4
/// has 64-bit ones; a host of one version never sees the locks of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "u32", try_from = "u32"))]
pub enum NlmVersion {
    /// 32-bit ranges.
    V1 = 1,
    /// 32-bit ranges, and DOS shares (`NLM_VERSX`).
    V3 = 3,
    /// 64-bit ranges: the version for NFSv3 (RFC 1813).
    V4 = 4,
}

impl From<NlmVersion> for u32 {
    fn from(version: NlmVersion) -> u32 {
        version as u32
    }
}

/// The number is not a version of NLM that exists: 1, 3 and 4 do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchVersion(pub u32);

impl fmt::Display for NoSuchVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NLM has no version {}", self.0)
    }
}

impl core::error::Error for NoSuchVersion {}

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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Transport {
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17.
    Udp,
}

impl Transport {
    /// From `nlm_host.h_proto`, an IP protocol number; `None` unless TCP or UDP.
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

/// What a lock allows its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(Serialize, Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Mode {
    /// Shared: `F_RDLCK`.
    Read,
    /// Exclusive: `F_WRLCK`.
    Write,
}

impl Mode {
    /// From `F_RDLCK` (0) or `F_WRLCK` (1); any other number counts as a write lock.
    pub fn from_kernel(mode: u32) -> Self {
        if mode == 0 { Mode::Read } else { Mode::Write }
    }

    /// As shown.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Read => "read",
            Mode::Write => "write",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
