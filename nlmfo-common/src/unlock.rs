//! What clients gave up, taken from their calls and not from the answers: lockd and nfsd refuse
//! such calls in grace, and for state that a restart has ended.

use crate::Addr;

/// Maximum length of an NFSv3 file handle in bytes (RFC 1813, `NFS3_FHSIZE`).
pub const FH3_MAX: usize = 64;

/// Byte offsets of the arguments of these calls.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnlockLayout {
    /// NLM's UNLOCK.
    pub nfs3: Unlock3Layout,
    /// NFSv4's LOCKU and CLOSE.
    pub nfs4: Unlock4Layout,
}

/// Byte offsets for an NLM version 4 UNLOCK; all zeros if they are not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlock3Layout {
    /// `svc_rqst.rq_argp`, a pointer to the arguments. The offsets from `svid` on count from the
    /// start of the arguments.
    pub rqst_argp: u32,
    /// `svc_rqst.rq_addr`, a `sockaddr_storage`: the client.
    pub rqst_addr: u32,
    /// `svc_rqst.rq_daddr`, a `sockaddr_storage`: the server address that the client used.
    pub rqst_daddr: u32,
    /// The client's number for the lock owner, 4 bytes.
    pub svid: u32,
    /// The first byte of the range, 8 bytes.
    pub start: u32,
    /// The number of bytes, 8 bytes; 0 means up to the end of the file.
    pub len: u32,
    /// The length of the file handle.
    pub fh_size: u32,
    /// How many bytes `fh_size` has: 2 or 4.
    pub fh_size_bytes: u32,
    /// The file handle.
    pub fh: u32,
    /// Not 0: at `fh` is a pointer to the file handle.
    pub fh_is_pointer: u32,
}

/// Byte offsets for NFSv4's LOCKU and CLOSE, from the start of the operation's arguments; all
/// zeros if they are not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlock4Layout {
    /// `nfsd4_locku.lu_stateid`, 16 bytes: the generation (4 bytes), then the rest.
    pub locku_stateid: u32,
    /// `lu_offset`, 8 bytes.
    pub locku_start: u32,
    /// `lu_length`, 8 bytes; all ones means up to the end of the file.
    pub locku_len: u32,
    /// `nfsd4_close.cl_stateid`, 16 bytes.
    pub close_stateid: u32,
}

/// One NLM UNLOCK.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unlock3 {
    /// The server address that the call came to.
    pub vip: Addr,
    /// The address that the call came from.
    pub client: Addr,
    /// The first byte of the range.
    pub start: u64,
    /// The number of bytes; 0 means up to the end of the file.
    pub len: u64,
    /// The client's number for the lock owner.
    pub svid: u32,
    /// Length of the file handle in bytes.
    pub fh_size: u32,
    /// The file handle, followed by zeros.
    pub fh: [u8; FH3_MAX],
}

/// One NFSv4 LOCKU or CLOSE.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unlock4 {
    /// The first byte of the range.
    pub start: u64,
    /// The number of bytes; all ones means up to the end of the file.
    pub len: u64,
    /// The stateid without its generation.
    pub state: [u8; 12],
    /// 1 for a CLOSE, which has no range.
    pub closes: u32,
}

crate::plain!(
    UnlockLayout: 14 * 4,
    Unlock3Layout: 10 * 4,
    Unlock4Layout: 4 * 4,
    Unlock3: 2 * 16 + 2 * 8 + 2 * 4 + FH3_MAX,
    Unlock4: 2 * 8 + 12 + 4,
);
