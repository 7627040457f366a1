//! NLM, the Network Lock Manager's protocol, v1, v3 and v4: the calls of a client. [`wire`] has their
//! wire format.
//!
//! v1 and v3 carry ranges of 32 bits, v4 of 64. v1 ends at procedure 16: it has no SHARE, NM_LOCK or
//! FREE_ALL. Sources: XNFS C702 chapter 10 (v1, v3), RFC 1813 appendix II (v4), and what lockd actually
//! reads and answers: fs/lockd/xdr.c and xdr4.c, 6.1 and 6.12.

mod wire;

use bytes::Bytes;

use std::time::Duration;

use super::client::{Client, Error};
use super::message::Procedure;
use super::xdr::{self, Decoder, Encoder};
use nlmfo_common::protocol::NlmVersion;
use wire::{decode_share, decode_status, decode_test, encode};

/// The number of the NLM program.
pub const PROGRAM: u32 = 100_021;

/// Limits on variable-length fields, in bytes. lockd takes shorter cookies than the
/// protocol's 1024, and file handles of v1 and v3 of exactly 32.
pub const MAX_COOKIE: usize = 32;
/// Longest name of a caller, in bytes.
pub const MAX_NAME: usize = 1024;
/// Longest file handle of v4, in bytes (`NFS3_FHSIZE`).
pub const MAX_FILE_HANDLE: usize = 64;
/// Longest owner, in bytes.
pub const MAX_OWNER: usize = 1024;

/// What a lock call names: a range of a file, and an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lock {
    /// The client's name, as its statd knows it. lockd identifies a client by
    /// address; this is for its logs and for statd.
    pub caller: Vec<u8>,
    /// An NFS file handle: 32 bytes in v1 and v3, up to 64 in v4.
    pub file_handle: Vec<u8>,
    /// The client's own name for the owner; lockd only hands it back.
    pub owner: Vec<u8>,
    /// Distinguishes the owners of one client.
    pub svid: u32,
    pub range: Range,
}

/// Bytes of a file. Length 0 reaches to the end, wherever that will be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Number of bytes; 0 is up to the end of the file.
    pub length: u64,
}

impl Range {
    /// From the first byte to the end, wherever that will be.
    pub const WHOLE_FILE: Range = Range {
        offset: 0,
        length: 0,
    };
}

/// Arguments of LOCK and NM_LOCK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct LockCall {
    pub lock: Lock,
    pub exclusive: bool,
    /// Wait in the server's queue rather than be denied.
    pub block: bool,
    /// Take back a lock held before the server restarted: only in its grace period.
    pub reclaim: bool,
    /// The client's NSM state number. lockd ignores it.
    pub state: u32,
}

/// Arguments of SHARE and UNSHARE: a DOS share reservation of a whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Share {
    pub caller: String,
    pub file_handle: Vec<u8>,
    pub owner: Vec<u8>,
    /// What others may not do: 0 nothing denied, 1 read, 2 write, 3 both.
    pub deny: u32,
    /// What the holder does: 0 nothing, 1 read, 2 write, 3 both.
    pub access: u32,
}

/// `nlm_stats` and `nlm4_stats`. lockd sends those from `Deadlock` on only in v4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// The call has done what it asked for.
    Granted = 0,
    /// Another owner holds a lock that conflicts; for CANCEL, no such request waits.
    Denied = 1,
    /// No resources; also what lockd says to a client it cannot monitor.
    DeniedNoLocks = 2,
    /// The request waits; a GRANTED callback follows.
    Blocked = 3,
    /// lockd is in its grace period, or (for a reclaim) is not.
    DeniedGracePeriod = 4,
    /// Waiting for the lock would be a deadlock.
    Deadlock = 5,
    /// The filesystem is read-only.
    ReadOnly = 6,
    /// No file has this handle any more.
    StaleFileHandle = 7,
    /// The range is beyond what the filesystem can address.
    TooBig = 8,
    /// Any other failure.
    Failed = 9,
}

impl TryFrom<u32> for Status {
    type Error = xdr::Error;

    fn try_from(number: u32) -> Result<Self, xdr::Error> {
        Ok(match number {
            0 => Status::Granted,
            1 => Status::Denied,
            2 => Status::DeniedNoLocks,
            3 => Status::Blocked,
            4 => Status::DeniedGracePeriod,
            5 => Status::Deadlock,
            6 => Status::ReadOnly,
            7 => Status::StaleFileHandle,
            8 => Status::TooBig,
            9 => Status::Failed,
            number => {
                return Err(xdr::Error::Unknown {
                    what: "the NLM status",
                    number,
                });
            }
        })
    }
}

/// The holder that conflicts with a tested lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// A write lock.
    pub exclusive: bool,
    /// What tells the owners of one client apart.
    pub svid: u32,
    /// The owner's name as its client sent it.
    pub owner: Vec<u8>,
    /// What it has locked.
    pub range: Range,
}

/// The answer to TEST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    /// The lock would be granted.
    Free,
    /// The lock would be refused, because of this one.
    Held(Holder),
    /// Neither is known: grace, an error.
    Refused(Status),
}

/// A client of one lockd, speaking one version.
#[derive(Debug)]
pub(crate) struct NlmClient {
    rpc: Client,
    version: NlmVersion,
    next_cookie: u32,
}

impl NlmClient {
    pub fn new(rpc: Client, version: NlmVersion) -> Self {
        NlmClient {
            rpc,
            version,
            next_cookie: 1,
        }
    }

    /// Time for each call from now on.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.rpc.set_deadline(deadline);
    }

    /// NULL: whether the service answers in this version.
    pub async fn null(&mut self) -> Result<(), Error> {
        self.call(0, "NULL", Ok(Encoder::default()), |results| {
            results.finish()
        })
        .await
    }

    pub async fn test(&mut self, lock: &Lock, exclusive: bool) -> Result<Test, Error> {
        let version = self.version;
        let arguments = encode(&self.cookie(), |xdr| {
            xdr.bool(exclusive);
            lock.encode(xdr, version)
        });
        self.call(1, "TEST", arguments, |results| {
            decode_test(results, version)
        })
        .await
    }

    pub async fn lock(&mut self, call: &LockCall) -> Result<Status, Error> {
        self.lock_call(2, "LOCK", call).await
    }

    /// LOCK without being monitored: lockd does not ask statd to watch the client.
    pub async fn nm_lock(&mut self, call: &LockCall) -> Result<Status, Error> {
        self.lock_call(22, "NM_LOCK", call).await
    }

    /// Cancels a waiting request. It must name the very range and mode of that request.
    pub async fn cancel(&mut self, lock: &Lock, exclusive: bool) -> Result<Status, Error> {
        let version = self.version;
        let arguments = encode(&self.cookie(), |xdr| {
            xdr.bool(true);
            xdr.bool(exclusive);
            lock.encode(xdr, version)
        });
        self.call(3, "CANCEL", arguments, decode_status).await
    }

    pub async fn unlock(&mut self, lock: &Lock) -> Result<Status, Error> {
        let version = self.version;
        let arguments = encode(&self.cookie(), |xdr| lock.encode(xdr, version));
        self.call(4, "UNLOCK", arguments, decode_status).await
    }

    pub async fn share(&mut self, share: &Share, reclaim: bool) -> Result<Status, Error> {
        let arguments = encode(&self.cookie(), |xdr| share.encode(xdr, reclaim));
        self.call(20, "SHARE", arguments, decode_share).await
    }

    pub async fn unshare(&mut self, share: &Share) -> Result<Status, Error> {
        let arguments = encode(&self.cookie(), |xdr| share.encode(xdr, false));
        self.call(21, "UNSHARE", arguments, decode_share).await
    }

    /// Gives up every lock, waiting request and share of the host that the call comes
    /// from. The answer is empty, and the same whether there was anything to give up.
    pub async fn free_all(&mut self, caller: &[u8], state: u32) -> Result<(), Error> {
        let mut xdr = Encoder::default();
        let arguments = xdr.opaque("the caller's name", caller, MAX_NAME).map(|()| {
            xdr.u32(state);
            xdr
        });
        self.call(23, "FREE_ALL", arguments, |results| results.finish())
            .await
    }

    async fn lock_call(
        &mut self,
        number: u32,
        name: &'static str,
        call: &LockCall,
    ) -> Result<Status, Error> {
        let version = self.version;
        let arguments = encode(&self.cookie(), |xdr| call.encode(xdr, version));
        self.call(number, name, arguments, decode_status).await
    }

    async fn call<T>(
        &mut self,
        number: u32,
        name: &'static str,
        arguments: Result<Encoder, xdr::Error>,
        decode: impl FnOnce(Decoder<'_>) -> Result<T, xdr::Error>,
    ) -> Result<T, Error> {
        let version = self.version.into();
        let procedure = Procedure {
            program: PROGRAM,
            program_name: "NLM",
            version,
            number,
            name,
        };
        let arguments = arguments.map_err(|error| self.rpc.error(&procedure, error))?;
        let results: Bytes = self.rpc.call(&procedure, &arguments.finish()).await?;
        decode(Decoder::new(&results)).map_err(|error| self.rpc.error(&procedure, error))
    }

    /// lockd finds a waiting request again by its cookie: each call has its own.
    fn cookie(&mut self) -> [u8; 4] {
        let cookie = self.next_cookie.to_be_bytes();
        self.next_cookie = self.next_cookie.wrapping_add(1);
        cookie
    }
}
