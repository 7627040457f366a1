//! NLM, the Network Lock Manager's protocol, v1, v3 and v4: the calls of a client.
//!
//! v1 and v3 carry ranges of 32 bits, v4 of 64. v1 ends at procedure 16: it has no
//! SHARE, NM_LOCK or FREE_ALL. Sources: XNFS C702 chapter 10 (v1, v3), RFC 1813
//! appendix II (v4), and what lockd really reads and answers: fs/lockd/xdr.c and
//! xdr4.c, 6.1 and 6.12.

use bytes::Bytes;

use super::client::{Client, Error};
use super::message::Procedure;
use super::xdr::{self, Decoder, Encoder};
use crate::observe::host::NlmVersion;

pub const PROGRAM: u32 = 100_021;

/// Limits on variable-length fields, in bytes. lockd takes shorter cookies than the
/// protocol's 1024, and file handles of v1 and v3 of exactly 32.
pub const MAX_COOKIE: usize = 32;
pub const MAX_NAME: usize = 1024;
pub const MAX_FILE_HANDLE: usize = 64;
pub const MAX_OWNER: usize = 1024;

/// What a lock is asked for, or given up: a range of a file, for an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The client's name, as its statd knows it. lockd identifies a client by
    /// address; this is for its logs and for statd.
    pub caller: String,
    /// An NFS file handle: 32 bytes in v1 and v3, up to 64 in v4.
    pub file_handle: Vec<u8>,
    /// The client's own name for the owner; lockd only hands it back.
    pub owner: Vec<u8>,
    /// What lockd tells owners of one client apart by.
    pub svid: u32,
    pub range: Range,
}

/// Bytes of a file. Length 0 reaches to the end, wherever that will be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Range {
    pub offset: u64,
    pub length: u64,
}

impl Range {
    pub const WHOLE_FILE: Range = Range {
        offset: 0,
        length: 0,
    };
}

/// Arguments of LOCK and NM_LOCK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockCall {
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
pub struct Share {
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
    Granted = 0,
    Denied = 1,
    /// No resources; also what lockd says to a client it cannot monitor.
    DeniedNoLocks = 2,
    Blocked = 3,
    DeniedGracePeriod = 4,
    Deadlock = 5,
    ReadOnly = 6,
    StaleFileHandle = 7,
    /// The range is beyond what the filesystem can address.
    TooBig = 8,
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

/// Who stands in the way of a lock that was tested for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    pub exclusive: bool,
    pub svid: u32,
    pub owner: Vec<u8>,
    pub range: Range,
}

/// The answer to TEST.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Test {
    Free,
    Held(Holder),
    /// Neither is known: grace, an error.
    Refused(Status),
}

/// A client of one lockd, speaking one version.
#[derive(Debug)]
pub struct NlmClient {
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

    /// NULL: is anyone there who speaks this version?
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

    /// Takes a waiting request back. It must name the very range and mode of that
    /// request.
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
    pub async fn free_all(&mut self, caller: &str, state: u32) -> Result<(), Error> {
        let mut xdr = Encoder::default();
        let arguments = xdr
            .opaque("the caller's name", caller.as_bytes(), MAX_NAME)
            .map(|()| {
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

fn encode(
    cookie: &[u8],
    arguments: impl FnOnce(&mut Encoder) -> Result<(), xdr::Error>,
) -> Result<Encoder, xdr::Error> {
    let mut xdr = Encoder::default();
    xdr.opaque("the cookie", cookie, MAX_COOKIE)?;
    arguments(&mut xdr)?;
    Ok(xdr)
}

impl LockCall {
    fn encode(&self, xdr: &mut Encoder, version: NlmVersion) -> Result<(), xdr::Error> {
        xdr.bool(self.block);
        xdr.bool(self.exclusive);
        self.lock.encode(xdr, version)?;
        xdr.bool(self.reclaim);
        xdr.u32(self.state);
        Ok(())
    }
}

impl Lock {
    fn encode(&self, xdr: &mut Encoder, version: NlmVersion) -> Result<(), xdr::Error> {
        xdr.opaque("the caller's name", self.caller.as_bytes(), MAX_NAME)?;
        xdr.opaque("the file handle", &self.file_handle, MAX_FILE_HANDLE)?;
        xdr.opaque("the owner", &self.owner, MAX_OWNER)?;
        xdr.u32(self.svid);
        self.range.encode(xdr, version)
    }
}

impl Share {
    fn encode(&self, xdr: &mut Encoder, reclaim: bool) -> Result<(), xdr::Error> {
        xdr.opaque("the caller's name", self.caller.as_bytes(), MAX_NAME)?;
        xdr.opaque("the file handle", &self.file_handle, MAX_FILE_HANDLE)?;
        xdr.opaque("the owner", &self.owner, MAX_OWNER)?;
        xdr.u32(self.deny);
        xdr.u32(self.access);
        xdr.bool(reclaim);
        Ok(())
    }
}

impl Range {
    fn encode(self, xdr: &mut Encoder, version: NlmVersion) -> Result<(), xdr::Error> {
        match version {
            NlmVersion::V1 | NlmVersion::V3 => {
                xdr.u32(narrow("the offset", self.offset)?);
                xdr.u32(narrow("the length", self.length)?);
            }
            NlmVersion::V4 => {
                xdr.u64(self.offset);
                xdr.u64(self.length);
            }
        }
        Ok(())
    }

    fn decode(xdr: &mut Decoder<'_>, version: NlmVersion) -> Result<Self, xdr::Error> {
        Ok(match version {
            NlmVersion::V1 | NlmVersion::V3 => Range {
                offset: xdr.u32("the offset")?.into(),
                length: xdr.u32("the length")?.into(),
            },
            NlmVersion::V4 => Range {
                offset: xdr.u64("the offset")?,
                length: xdr.u64("the length")?,
            },
        })
    }
}

fn narrow(what: &'static str, value: u64) -> Result<u32, xdr::Error> {
    u32::try_from(value).map_err(|_| xdr::Error::TooLarge { what, value })
}

/// `nlm_res`. The cookie that comes back is ours: one call is under way at a time,
/// and the transaction id has matched already.
fn decode_status(mut results: Decoder<'_>) -> Result<Status, xdr::Error> {
    results.opaque("the cookie", MAX_COOKIE)?;
    let status = results.u32("the status")?.try_into()?;
    results.finish()?;
    Ok(status)
}

/// `nlm_testres`: the holder follows where the status is *denied*.
fn decode_test(mut results: Decoder<'_>, version: NlmVersion) -> Result<Test, xdr::Error> {
    results.opaque("the cookie", MAX_COOKIE)?;
    let test = match results.u32("the status")?.try_into()? {
        Status::Granted => Test::Free,
        Status::Denied => Test::Held(Holder {
            exclusive: results.bool("exclusive")?,
            svid: results.u32("the holder's svid")?,
            owner: results.opaque("the holder", MAX_OWNER)?.to_vec(),
            range: Range::decode(&mut results, version)?,
        }),
        status => Test::Refused(status),
    };
    results.finish()?;
    Ok(test)
}

/// `nlm_shareres`. Its sequence number means nothing any more: lockd sends 0.
fn decode_share(mut results: Decoder<'_>) -> Result<Status, xdr::Error> {
    results.opaque("the cookie", MAX_COOKIE)?;
    let status = results.u32("the status")?.try_into()?;
    results.u32("the sequence number")?;
    results.finish()?;
    Ok(status)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What lockd's decoder does with a LOCK, in Rust: `svcxdr_decode_lock`.
    fn decode_lock(xdr: &mut Decoder<'_>, version: NlmVersion) -> Result<Lock, xdr::Error> {
        Ok(Lock {
            caller: xdr.string("caller", MAX_NAME)?,
            file_handle: xdr.opaque("fh", MAX_FILE_HANDLE)?.to_vec(),
            owner: xdr.opaque("owner", MAX_OWNER)?.to_vec(),
            svid: xdr.u32("svid")?,
            range: Range::decode(xdr, version)?,
        })
    }

    fn versions() -> impl Strategy<Value = NlmVersion> {
        prop::sample::select(vec![NlmVersion::V1, NlmVersion::V3, NlmVersion::V4])
    }

    fn ranges(version: NlmVersion) -> impl Strategy<Value = Range> {
        let max = if version == NlmVersion::V4 {
            u64::MAX
        } else {
            u32::MAX.into()
        };
        (0..=max, 0..=max).prop_map(|(offset, length)| Range { offset, length })
    }

    fn lock_calls() -> impl Strategy<Value = (NlmVersion, LockCall)> {
        versions().prop_flat_map(|version| {
            let bytes = |max| prop::collection::vec(any::<u8>(), 0..max);
            let lock = (
                ".{0,30}",
                bytes(65),
                bytes(80),
                any::<u32>(),
                ranges(version),
            );
            let flags = any::<(bool, bool, bool, u32)>();
            (lock, flags).prop_map(move |(lock, flags)| {
                let (caller, file_handle, owner, svid, range) = lock;
                let (exclusive, block, reclaim, state) = flags;
                let lock = Lock {
                    caller,
                    file_handle,
                    owner,
                    svid,
                    range,
                };
                (
                    version,
                    LockCall {
                        lock,
                        exclusive,
                        block,
                        reclaim,
                        state,
                    },
                )
            })
        })
    }

    proptest! {
        #[test]
        fn a_lock_call_reads_back_as_it_was((version, call) in lock_calls()) {
            let arguments = encode(b"ck", |xdr| call.encode(xdr, version)).unwrap().finish();
            let mut xdr = Decoder::new(&arguments);
            prop_assert_eq!(xdr.opaque("cookie", MAX_COOKIE).unwrap(), b"ck");
            prop_assert_eq!(xdr.bool("block").unwrap(), call.block);
            prop_assert_eq!(xdr.bool("exclusive").unwrap(), call.exclusive);
            prop_assert_eq!(decode_lock(&mut xdr, version).unwrap(), call.lock);
            prop_assert_eq!(xdr.bool("reclaim").unwrap(), call.reclaim);
            prop_assert_eq!(xdr.u32("state").unwrap(), call.state);
            prop_assert_eq!(xdr.finish(), Ok(()));
        }

        #[test]
        fn a_holder_reads_back_as_it_was(
            (version, range) in versions().prop_flat_map(|v| (Just(v), ranges(v))),
            exclusive: bool,
            svid: u32,
            owner in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut xdr = Encoder::default();
            xdr.opaque("cookie", b"1234", MAX_COOKIE).unwrap();
            xdr.u32(Status::Denied as u32);
            xdr.bool(exclusive);
            xdr.u32(svid);
            xdr.opaque("owner", &owner, MAX_OWNER).unwrap();
            range.encode(&mut xdr, version).unwrap();
            let results = xdr.finish();
            let holder = Holder { exclusive, svid, owner, range };
            prop_assert_eq!(decode_test(Decoder::new(&results), version), Ok(Test::Held(holder)));
        }

        #[test]
        fn garbage_is_an_error_and_not_a_panic(
            results in prop::collection::vec(any::<u8>(), 0..80),
            version in versions(),
        ) {
            let _ = decode_test(Decoder::new(&results), version);
            let _ = decode_status(Decoder::new(&results));
            let _ = decode_share(Decoder::new(&results));
        }
    }

    #[test]
    fn a_range_beyond_32_bits_is_refused_before_it_is_sent_in_v3() {
        let range = Range {
            offset: 1 << 32,
            length: 1,
        };
        let error = range.encode(&mut Encoder::default(), NlmVersion::V3);
        assert_eq!(
            error,
            Err(xdr::Error::TooLarge {
                what: "the offset",
                value: 1 << 32
            })
        );
        assert_eq!(
            range.encode(&mut Encoder::default(), NlmVersion::V4),
            Ok(())
        );
    }

    #[test]
    fn every_status_is_its_own_number_and_no_other_is_taken() {
        for number in 0..=9 {
            assert_eq!(Status::try_from(number).unwrap() as u32, number);
        }
        // lockd's internal "drop the reply", which must never be seen on the wire.
        assert!(Status::try_from(30_000).is_err());
    }

    #[test]
    fn a_status_that_does_not_end_the_results_is_refused() {
        let granted = [0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(decode_status(Decoder::new(&granted)), Ok(Status::Granted));
        let extra = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(
            decode_status(Decoder::new(&extra)),
            Err(xdr::Error::Trailing { extra: 4 })
        );
        assert_eq!(decode_share(Decoder::new(&extra)), Ok(Status::Granted));
    }
}
