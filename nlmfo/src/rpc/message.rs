//! The wire format of a call and a reply, without their arguments.

use std::fmt;

use bytes::{Bytes, BytesMut};
use onc_rpc::auth::{AuthFlavor, AuthUnixParams};
use onc_rpc::{AcceptedStatus, CallBody, MessageType, RejectedReply, ReplyBody, RpcMessage};

/// Top bit of a TCP record marker: this fragment ends the record (RFC 5531, 11).
pub const LAST_FRAGMENT: u32 = 1 << 31;

/// Length of a TCP record marker. UDP datagrams carry none.
pub const RECORD_MARKER: usize = 4;

/// A remote procedure, with its name for errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Procedure {
    /// Its number, as IANA or the vendor assigns it.
    pub program: u32,
    /// For messages, e.g. `NLM`.
    pub program_name: &'static str,
    /// Version of the program.
    pub version: u32,
    /// Number within that version of the program.
    pub number: u32,
    /// For messages, as the protocol spells it.
    pub name: &'static str,
}

impl fmt::Display for Procedure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} v{} {}", self.program_name, self.version, self.name)
    }
}

/// The credentials of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credential {
    /// `AUTH_NONE`.
    #[default]
    Null,
    /// AUTH_UNIX, without supplementary groups.
    Unix {
        /// The caller's host name; cut to what fits the credential.
        machine: Vec<u8>,
        /// User ID; 0 is root.
        uid: u32,
        /// Primary group ID.
        gid: u32,
    },
}

/// Longest machine name of AUTH_UNIX (RFC 5531, appendix A, says 255). The
/// credential as a whole must fit 200 bytes beside it.
const MAX_MACHINE_NAME: usize = 180;

impl Credential {
    fn to_wire(&self) -> AuthFlavor<&[u8]> {
        match self {
            Credential::Null => AuthFlavor::AuthNone(None),
            Credential::Unix { machine, uid, gid } => {
                let machine = &machine[..machine.len().min(MAX_MACHINE_NAME)];
                AuthFlavor::AuthUnix(AuthUnixParams::new(0, machine, *uid, *gid, []))
            }
        }
    }
}

/// A whole call, record marker included.
#[expect(clippy::missing_panics_doc, reason = "a write to memory does not fail")]
pub fn encode_call(
    xid: u32,
    procedure: &Procedure,
    credential: &Credential,
    arguments: &[u8],
) -> Vec<u8> {
    let call = CallBody::new(
        procedure.program,
        procedure.version,
        procedure.number,
        credential.to_wire(),
        AuthFlavor::AuthNone(None),
        arguments,
    );
    RpcMessage::new(xid, MessageType::Call(call))
        .serialise()
        .expect("writing a call of a few kilobytes to memory cannot fail")
}

/// The transaction a reply belongs to, from the first word after the marker.
/// `None` if the record is too short to be a reply.
pub fn reply_xid(record: &[u8]) -> Option<u32> {
    let xid = record.get(RECORD_MARKER..)?.first_chunk()?;
    Some(u32::from_be_bytes(*xid))
}

/// Fills in the marker at the start of `record`, which is one whole record.
pub fn with_marker(mut record: BytesMut) -> Bytes {
    let length = LAST_FRAGMENT | (record.len() - RECORD_MARKER) as u32;
    record[..RECORD_MARKER].copy_from_slice(&length.to_be_bytes());
    record.freeze()
}

/// A datagram as the record that it would be over TCP.
pub fn datagram_as_record(datagram: &[u8]) -> Bytes {
    let mut record = BytesMut::zeroed(RECORD_MARKER);
    record.extend_from_slice(datagram);
    with_marker(record)
}

/// The results in a reply. `record` is one record with a marker of its whole
/// length in front.
///
/// # Errors
/// If the peer refused the call, or the record is no reply to one.
pub fn decode_reply(record: Bytes) -> Result<Bytes, Refusal> {
    let message = RpcMessage::<Bytes, Bytes>::try_from(record)
        .map_err(|error| Refusal::Malformed(error.to_string()))?;
    match message.reply_body() {
        Some(ReplyBody::Accepted(reply)) => match reply.status() {
            AcceptedStatus::Success(results) => Ok(results.clone()),
            AcceptedStatus::ProgramUnavailable => Err(Refusal::ProgramUnavailable),
            AcceptedStatus::ProgramMismatch { low, high } => Err(Refusal::VersionUnavailable {
                low: *low,
                high: *high,
            }),
            AcceptedStatus::ProcedureUnavailable => Err(Refusal::ProcedureUnavailable),
            AcceptedStatus::GarbageArgs => Err(Refusal::GarbageArguments),
            AcceptedStatus::SystemError => Err(Refusal::SystemError),
        },
        Some(ReplyBody::Denied(RejectedReply::AuthError(error))) => {
            Err(Refusal::Authentication(format!("{error:?}")))
        }
        Some(ReplyBody::Denied(RejectedReply::RpcVersionMismatch { low, high })) => {
            Err(Refusal::RpcVersion {
                low: *low,
                high: *high,
            })
        }
        None => Err(Refusal::Malformed("it is a call, not a reply".into())),
    }
}

/// Why a peer answered without results.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// `PROG_UNAVAIL`.
    #[error("the peer does not serve the program")]
    ProgramUnavailable,
    /// `PROG_MISMATCH`.
    #[error("the peer serves only versions {low} to {high} of the program")]
    VersionUnavailable {
        /// Lowest version served.
        low: u32,
        /// Highest version served.
        high: u32,
    },
    /// `PROC_UNAVAIL`.
    #[error("the peer does not know the procedure")]
    ProcedureUnavailable,
    /// `GARBAGE_ARGS`.
    #[error("the peer could not decode the arguments")]
    GarbageArguments,
    /// `SYSTEM_ERR`.
    #[error("the peer reports an internal error (for lockd's SM_NOTIFY: not privileged)")]
    SystemError,
    /// knfsd and lockd answer this way to an address that no export names.
    #[error("the peer refused the credentials or the caller's address ({0})")]
    Authentication(String),
    /// `RPC_MISMATCH`.
    #[error("the peer speaks ONC RPC {low} to {high}, not 2")]
    RpcVersion {
        /// Lowest version of ONC RPC served.
        low: u32,
        /// Highest version of ONC RPC served.
        high: u32,
    },
    /// Not a reply in the form of RFC 5531; what is wrong with it.
    #[error("the reply is malformed: {0}")]
    Malformed(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    const GETPORT: Procedure = Procedure {
        program: 100_000,
        program_name: "rpcbind",
        version: 2,
        number: 3,
        name: "GETPORT",
    };

    fn record(words: &[u32]) -> Bytes {
        let length = LAST_FRAGMENT | (words.len() as u32 * 4);
        let words = [length].into_iter().chain(words.iter().copied());
        words.flat_map(u32::to_be_bytes).collect::<Vec<_>>().into()
    }

    #[test]
    fn a_call_is_laid_out_as_rfc_5531_says() {
        let call = encode_call(7, &GETPORT, &Credential::Null, &[0, 0, 0, 9]);
        let expected = record(&[7, 0, 2, 100_000, 2, 3, 0, 0, 0, 0, 9]);
        assert_eq!(call, expected);
    }

    #[test]
    fn auth_unix_carries_machine_uid_and_gid() {
        let credential = Credential::Unix {
            machine: "c1".into(),
            uid: 5,
            gid: 6,
        };
        let call = encode_call(7, &GETPORT, &credential, &[]);
        let machine = u32::from_be_bytes(*b"c1\0\0");
        let expected = record(&[7, 0, 2, 100_000, 2, 3, 1, 24, 0, 2, machine, 5, 6, 0, 0, 0]);
        assert_eq!(call, expected);
    }

    #[test]
    fn a_machine_name_of_any_length_makes_a_call() {
        let machine = "m".repeat(4000);
        let call = encode_call(
            1,
            &GETPORT,
            &Credential::Unix {
                machine: machine.into(),
                uid: 0,
                gid: 0,
            },
            &[],
        );
        assert!(call.len() < 300);
    }

    #[test]
    fn results_and_refusals_are_told_apart() {
        let cases = [
            (
                record(&[7, 1, 0, 0, 0, 0, 42]),
                Ok(Bytes::from_static(&[0, 0, 0, 42])),
            ),
            (
                record(&[7, 1, 0, 0, 0, 1]),
                Err(Refusal::ProgramUnavailable),
            ),
            (
                record(&[7, 1, 0, 0, 0, 2, 1, 4]),
                Err(Refusal::VersionUnavailable { low: 1, high: 4 }),
            ),
            (
                record(&[7, 1, 0, 0, 0, 3]),
                Err(Refusal::ProcedureUnavailable),
            ),
            (record(&[7, 1, 0, 0, 0, 4]), Err(Refusal::GarbageArguments)),
            (record(&[7, 1, 0, 0, 0, 5]), Err(Refusal::SystemError)),
            (
                record(&[7, 1, 1, 0, 2, 2]),
                Err(Refusal::RpcVersion { low: 2, high: 2 }),
            ),
        ];
        for (reply, expected) in cases {
            assert_eq!(reply_xid(&reply), Some(7));
            assert_eq!(decode_reply(reply), expected);
        }
        let refused = decode_reply(record(&[7, 1, 1, 1, 1]));
        assert!(
            matches!(refused, Err(Refusal::Authentication(_))),
            "{refused:?}"
        );
    }

    #[test]
    fn a_reply_of_any_length_is_an_error_and_not_a_panic() {
        let whole = record(&[7, 1, 0, 0, 0, 0]);
        for length in 0..whole.len() {
            let cut = whole.slice(..length);
            assert!(decode_reply(cut).is_err());
        }
    }
}
