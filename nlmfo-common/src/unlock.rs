//! UNLOCK calls that lockd was asked for, whatever it answered: in grace it refuses them.

use crate::Addr;

/// The most bytes of a file handle of NFSv3 (RFC 1813, `NFS3_FHSIZE`).
pub const FH3_MAX: usize = 64;

/// Where the arguments of an NLM version 4 UNLOCK are. All zeros where that is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnlockLayout {
    /// `svc_rqst.rq_argp`, a pointer to the arguments, from whose start the others count.
    pub rqst_argp: u32,
    /// `svc_rqst.rq_addr` and `rq_daddr`, each a `sockaddr_storage`: the client, and the server
    /// address that it used.
    pub rqst_addr: u32,
    pub rqst_daddr: u32,
    /// 4 bytes.
    pub svid: u32,
    /// The first byte of the range, 8 bytes.
    pub start: u32,
    /// The number of bytes, 8 bytes; 0 means up to the end of the file.
    pub len: u32,
    /// The size of the file handle.
    pub fh_size: u32,
    /// Bytes of that size: 2 or 4.
    pub fh_size_bytes: u32,
    /// The file handle.
    pub fh: u32,
    /// Not 0: `fh` is a pointer to it.
    pub fh_is_pointer: u32,
}

/// The key of one UNLOCK; its value is the number of such calls.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unlock {
    pub vip: Addr,
    pub client: Addr,
    pub start: u64,
    /// The number of bytes; 0 means up to the end of the file.
    pub len: u64,
    pub svid: u32,
    pub fh_size: u32,
    /// Zeros behind the handle.
    pub fh: [u8; FH3_MAX],
}

crate::plain!(UnlockLayout: 10 * 4, Unlock: 2 * 16 + 2 * 8 + 2 * 4 + FH3_MAX);
