//! What clients gave up, by their calls, whatever lockd and nfsd answer: they refuse such calls in
//! grace, and for state that a restart has ended.

use crate::Addr;

/// The most bytes of a file handle of NFSv3 (RFC 1813, `NFS3_FHSIZE`).
pub const FH3_MAX: usize = 64;

/// Where the arguments of these calls are.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnlockLayout {
    pub nfs3: Unlock3Layout,
    pub nfs4: Unlock4Layout,
}

/// Of an NLM version 4 UNLOCK. All zeros where that is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlock3Layout {
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

/// Of NFSv4's LOCKU and CLOSE, from the start of the operation's arguments. All zeros where that
/// is not known.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unlock4Layout {
    /// `nfsd4_locku.lu_stateid`, 16 bytes: the generation, then the rest.
    pub locku_stateid: u32,
    /// `lu_offset`, 8 bytes.
    pub locku_start: u32,
    /// `lu_length`, 8 bytes; all ones means up to the end of the file.
    pub locku_len: u32,
    /// `nfsd4_close.cl_stateid`, 16 bytes.
    pub close_stateid: u32,
}

/// One UNLOCK.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unlock3 {
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

/// One LOCKU or CLOSE.
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
