//! The identity of an NFSv4.1 server.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::client::{Client, Endpoint, Error, Source, random};
use super::message::{Credential, Procedure};
use super::xdr::{self, Decoder, Encoder};
use crate::foreign::Name;
use nlmfo_common::protocol::Transport;

const COMPOUND: Procedure = Procedure {
    program: 100_003,
    program_name: "NFS",
    version: 4,
    number: 1,
    name: "COMPOUND",
};

const EXCHANGE_ID: u32 = 42;
const DESTROY_CLIENTID: u32 = 57;
const SP4_NONE: u32 = 0;

/// The longest name, owner or scope (`NFS4_OPAQUE_LIMIT`, RFC 8881).
const LONGEST: usize = 1024;

/// By these, NFSv4.1 clients recognize the server whose state they hold (RFC 8881, 2.10.4 and 2.10.5):
/// they reclaim only from a server with the same scope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub scope: Name,
    /// The major ID of the server's owner.
    pub owner: Name,
}

/// Asks the server at this address, which must serve this minor version, 1 or 2. None if it refuses.
/// For a moment, nlmfo is one of its clients.
///
/// # Errors
/// If there is no answer, or it violates the protocol.
pub async fn identity(
    address: IpAddr,
    port: u16,
    minor: u32,
    deadline: Duration,
) -> Result<Option<Identity>, Error> {
    let mut rpc = Client::connect(Endpoint {
        peer: SocketAddr::new(address, port),
        transport: Transport::Tcp,
        source: Source::Any,
        credential: Credential::Null,
        deadline,
    })
    .await?;
    let name = format!("nlmfo {:016x}", random());
    let arguments = exchange_id(minor, name.as_bytes(), random());
    let arguments = arguments.map_err(|error| rpc.error(&COMPOUND, error))?;
    let results = rpc.call(&COMPOUND, &arguments).await?;
    let answer = decode(&results).map_err(|error| rpc.error(&COMPOUND, error))?;
    let Some((client, identity)) = answer else {
        return Ok(None);
    };
    // If this fails, the server drops the client after a lease.
    let _ = rpc.call(&COMPOUND, &destroy_clientid(minor, client)).await;
    Ok(Some(identity))
}

/// A compound of one operation.
fn compound(minor: u32, operation: u32) -> Encoder {
    let mut compound = Encoder::default();
    // An empty tag.
    compound.u32(0);
    compound.u32(minor);
    compound.u32(1);
    compound.u32(operation);
    compound
}

fn exchange_id(minor: u32, name: &[u8], verifier: u64) -> Result<Bytes, xdr::Error> {
    let mut arguments = compound(minor, EXCHANGE_ID);
    arguments.u64(verifier);
    arguments.opaque("the client's name", name, LONGEST)?;
    // No flags.
    arguments.u32(0);
    arguments.u32(SP4_NONE);
    // No implementation ID.
    arguments.u32(0);
    Ok(arguments.finish().freeze())
}

fn destroy_clientid(minor: u32, client: u64) -> Bytes {
    let mut arguments = compound(minor, DESTROY_CLIENTID);
    arguments.u64(client);
    arguments.finish().freeze()
}

/// The client ID that we got, and the server's identity. None if the server refused.
fn decode(results: &[u8]) -> Result<Option<(u64, Identity)>, xdr::Error> {
    let mut results = Decoder::new(results);
    if results.u32("the status")? != 0 {
        return Ok(None);
    }
    results.opaque("the tag", LONGEST)?;
    for what in ["the number of results", "the operation", "its status"] {
        results.u32(what)?;
    }
    let client = results.u64("the client ID")?;
    for what in ["the sequence number", "the flags"] {
        results.u32(what)?;
    }
    if results.u32("the state protection")? != SP4_NONE {
        return Ok(None);
    }
    results.u64("the owner's minor ID")?;
    let owner = results.opaque("the owner's major ID", LONGEST)?.into();
    let scope = results.opaque("the scope", LONGEST)?.into();
    Ok(Some((client, Identity { scope, owner })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_what_comes_before_the_implementation() {
        let mut answer = Encoder::default();
        for word in [0, 0, 1, EXCHANGE_ID, 0] {
            answer.u32(word);
        }
        answer.u64(7);
        for word in [1, 0, SP4_NONE] {
            answer.u32(word);
        }
        answer.u64(0);
        answer.opaque("", b"owner", LONGEST).unwrap();
        answer.opaque("", b"scope", LONGEST).unwrap();
        answer.u32(0);
        let answer = answer.finish();
        let (client, identity) = decode(&answer).unwrap().unwrap();
        assert_eq!(client, 7);
        assert_eq!(
            (identity.owner, identity.scope),
            ("owner".into(), "scope".into())
        );
        decode(&answer[..40]).unwrap_err();
        // NFS4ERR_MINOR_VERS_MISMATCH
        assert_eq!(
            decode(&[0, 0, 0x27, 0x25, 0, 0, 0, 0, 0, 0, 0, 0]).unwrap(),
            None
        );
    }

    #[test]
    fn a_call_has_one_operation() {
        let call = exchange_id(1, b"me", 9).unwrap();
        let words = |bytes: &[u8]| -> Vec<u32> {
            let words = bytes.chunks_exact(4);
            words
                .map(|word| u32::from_be_bytes(word.try_into().unwrap()))
                .collect()
        };
        assert_eq!(words(&call)[..7], [0, 1, 1, EXCHANGE_ID, 0, 9, 2]);
        assert_eq!(words(&call)[8..], [0, SP4_NONE, 0]);
        assert_eq!(
            words(&destroy_clientid(2, 5)),
            [0, 2, 1, DESTROY_CLIENTID, 0, 5]
        );
    }
}
