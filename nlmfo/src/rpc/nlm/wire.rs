//! The arguments and results of NLM's calls, as XDR.

use super::{
    Holder, Lock, LockCall, MAX_COOKIE, MAX_FILE_HANDLE, MAX_NAME, MAX_OWNER, Range, Share, Status,
    Test,
};
use crate::rpc::xdr::{self, Decoder, Encoder};
use nlmfo_common::protocol::NlmVersion;

/// A call's arguments: the cookie, and what follows it.
pub(super) fn encode(
    cookie: &[u8],
    arguments: impl FnOnce(&mut Encoder) -> Result<(), xdr::Error>,
) -> Result<Encoder, xdr::Error> {
    let mut xdr = Encoder::default();
    xdr.opaque("the cookie", cookie, MAX_COOKIE)?;
    arguments(&mut xdr)?;
    Ok(xdr)
}

impl LockCall {
    pub(super) fn encode(&self, xdr: &mut Encoder, version: NlmVersion) -> Result<(), xdr::Error> {
        xdr.bool(self.block);
        xdr.bool(self.exclusive);
        self.lock.encode(xdr, version)?;
        xdr.bool(self.reclaim);
        xdr.u32(self.state);
        Ok(())
    }
}

impl Lock {
    pub(super) fn encode(&self, xdr: &mut Encoder, version: NlmVersion) -> Result<(), xdr::Error> {
        xdr.opaque("the caller's name", &self.caller, MAX_NAME)?;
        xdr.opaque("the file handle", &self.file_handle, MAX_FILE_HANDLE)?;
        xdr.opaque("the owner", &self.owner, MAX_OWNER)?;
        xdr.u32(self.svid);
        self.range.encode(xdr, version)
    }
}

impl Share {
    pub(super) fn encode(&self, xdr: &mut Encoder, reclaim: bool) -> Result<(), xdr::Error> {
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
    pub(super) fn encode(self, xdr: &mut Encoder, version: NlmVersion) -> Result<(), xdr::Error> {
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
pub(super) fn decode_status(mut results: Decoder<'_>) -> Result<Status, xdr::Error> {
    results.opaque("the cookie", MAX_COOKIE)?;
    let status = results.u32("the status")?.try_into()?;
    results.finish()?;
    Ok(status)
}

/// `nlm_testres`: the holder follows where the status is *denied*.
pub(super) fn decode_test(
    mut results: Decoder<'_>,
    version: NlmVersion,
) -> Result<Test, xdr::Error> {
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

/// `nlm_shareres`. Its sequence number is obsolete: lockd sends 0.
pub(super) fn decode_share(mut results: Decoder<'_>) -> Result<Status, xdr::Error> {
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
            caller: xdr.opaque("caller", MAX_NAME)?.to_vec(),
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
                bytes(30),
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
