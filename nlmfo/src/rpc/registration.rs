//! Registrations with rpcbind, and registering them again with an rpcbind that has lost them: the
//! kernel registers nfsd and lockd only when they start.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::message::{Credential, RECORD_MARKER, decode_reply, encode_call};
use super::portmap::{MAX_STRING, PROGRAM, procedure};
use super::xdr::{self, Decoder, Encoder};

/// Longest reply to SET.
const MAX_REPLY: usize = 1024;

/// One entry of rpcbind's list (`rpcb` of RFC 1833), without its owner.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Registration {
    pub program: u32,
    pub version: u32,
    pub netid: String,
    /// Universal: `0.0.0.0.8.1`.
    pub address: String,
}

impl Registration {
    /// rpcbind registers itself.
    pub fn is_rpcbinds(&self) -> bool {
        self.program == PROGRAM
    }

    /// Registers it through rpcbind's socket, as the kernel does. As root, the owner is the
    /// superuser, as it is of what the kernel registers.
    ///
    /// # Errors
    /// Also if rpcbind has another entry of this program, version and netid.
    pub fn set(&self, socket: &Path, deadline: Duration) -> io::Result<()> {
        let invalid = |error: xdr::Error| io::Error::other(error);
        let mut arguments = Encoder::default();
        arguments.u32(self.program);
        arguments.u32(self.version);
        for (what, text) in [
            ("netid", &*self.netid),
            ("address", &self.address),
            ("owner", ""),
        ] {
            let encoded = arguments.opaque(what, text.as_bytes(), MAX_STRING);
            encoded.map_err(invalid)?;
        }
        let set = procedure(4, 1, "SET");
        let mut socket = UnixStream::connect(socket)?;
        socket.set_read_timeout(Some(deadline))?;
        socket.set_write_timeout(Some(deadline))?;
        socket.write_all(&encode_call(
            1,
            &set,
            &Credential::Null,
            &arguments.finish(),
        ))?;
        let mut record = vec![0; RECORD_MARKER];
        socket.read_exact(&mut record)?;
        let marker = <[u8; RECORD_MARKER]>::try_from(&*record).map_err(io::Error::other)?;
        // Without the last-fragment bit.
        let length = (u32::from_be_bytes(marker) & 0x7fff_ffff) as usize;
        if length > MAX_REPLY {
            return Err(io::Error::other("the reply is too long"));
        }
        record.resize(RECORD_MARKER + length, 0);
        socket.read_exact(&mut record[RECORD_MARKER..])?;
        let results = decode_reply(record.into()).map_err(io::Error::other)?;
        let is_set = Decoder::new(&results).bool("whether it is registered");
        match is_set.map_err(invalid)? {
            true => Ok(()),
            false => Err(io::Error::other("rpcbind refused it")),
        }
    }
}

/// `rpcblist`, the results of DUMP: program, version, netid, universal address, owner. An entry
/// that is not text is skipped: no client can ask for it.
pub fn decode(results: &[u8]) -> Result<Vec<Registration>, xdr::Error> {
    let mut xdr = Decoder::new(results);
    let mut all = Vec::new();
    while xdr.bool("is there another entry")? {
        let program = xdr.u32("the program")?;
        let version = xdr.u32("the version")?;
        let netid = xdr.opaque("the netid", MAX_STRING)?;
        let address = xdr.opaque("the universal address", MAX_STRING)?;
        xdr.opaque("the owner", MAX_STRING)?;
        if let (Ok(netid), Ok(address)) = (str::from_utf8(netid), str::from_utf8(address)) {
            all.push(Registration {
                program,
                version,
                netid: netid.to_owned(),
                address: address.to_owned(),
            });
        }
    }
    xdr.finish()?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Sets an entry at an rpcbind that gives this reply.
    fn set_at(reply: Vec<u32>) -> io::Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("rpcbind.sock");
        let listener = UnixListener::bind(&path)?;
        let rpcbind = thread::spawn(move || -> io::Result<Vec<u8>> {
            let mut call = vec![0; 1024];
            let (mut socket, _) = listener.accept()?;
            let length = socket.read(&mut call)?;
            call.truncate(length);
            let bytes: Vec<u8> = reply.into_iter().flat_map(u32::to_be_bytes).collect();
            socket.write_all(&bytes)?;
            Ok(call)
        });
        let entry = Registration {
            program: 100_003,
            version: 3,
            netid: "tcp6".into(),
            address: "::.8.1".into(),
        };
        let set = entry.set(&path, Duration::from_secs(20));
        let call = rpcbind.join().unwrap()?;
        assert!(call.windows(6).any(|some| some == b"::.8.1"), "{call:?}");
        set
    }

    #[test]
    fn rpcbinds_answer_counts() {
        let whole = (1 << 31) | 28;
        let reply = |answer| vec![whole, 1, 1, 0, 0, 0, 0, answer];
        set_at(reply(1)).unwrap();
        let refused = set_at(reply(0)).unwrap_err();
        assert!(refused.to_string().contains("refused"), "{refused}");
        set_at(vec![(1 << 31) | (1 << 20), 1]).unwrap_err();
        set_at(vec![whole, 1, 1]).unwrap_err();
    }
}
