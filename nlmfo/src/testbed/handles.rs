//! NFSv3 file handles without a mount, which raw NLM calls need: MOUNT3 MNT
//! for the export's root, NFSv3 LOOKUP for a file in it (RFC 1813).

use crate::rpc::client::Client;
use crate::rpc::message::Procedure;
use crate::rpc::xdr::{Decoder, Encoder};
use anyhow::{Context, Result, bail};

/// A file handle as the server made it, at most 64 bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileHandle(pub Vec<u8>);

const MAX_HANDLE: usize = 64;
const MAX_PATH: usize = 1024;
const MAX_NAME: usize = 255;

/// The MOUNT program, whose port rpcbind knows.
pub const MOUNT_PROGRAM: u32 = 100_005;

/// nfsd's well-known port.
pub const NFS_PORT: u16 = 2049;

const MNT: Procedure = Procedure {
    program: MOUNT_PROGRAM,
    program_name: "MOUNT",
    version: 3,
    number: 1,
    name: "MNT",
};

const LOOKUP: Procedure = Procedure {
    program: 100_003,
    program_name: "NFS",
    version: 3,
    number: 3,
    name: "LOOKUP",
};

/// The handle of an exported directory, asked of a server's mountd.
pub(crate) async fn root(mountd: &mut Client, export: &str) -> Result<FileHandle> {
    let mut arguments = Encoder::default();
    arguments.opaque("export", export.as_bytes(), MAX_PATH)?;
    let results = mountd.call(&MNT, &arguments.finish()).await?;
    handle(&results).with_context(|| format!("MNT {export}"))
}

/// The handle of the file `name` in `directory`, asked of a server's nfsd.
pub(crate) async fn lookup(
    nfsd: &mut Client,
    directory: &FileHandle,
    name: &str,
) -> Result<FileHandle> {
    let mut arguments = Encoder::default();
    arguments.opaque("directory", &directory.0, MAX_HANDLE)?;
    arguments.opaque("name", name.as_bytes(), MAX_NAME)?;
    let results = nfsd.call(&LOOKUP, &arguments.finish()).await?;
    handle(&results).with_context(|| format!("LOOKUP {name}"))
}

/// Both results begin with a status and, when it is 0, the handle.
fn handle(results: &[u8]) -> Result<FileHandle> {
    let mut decoder = Decoder::new(results);
    match decoder.u32("status")? {
        0 => Ok(FileHandle(decoder.opaque("handle", MAX_HANDLE)?.to_vec())),
        status => bail!("the server answered with status {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_follows_status_zero() {
        let results = b"\0\0\0\0\0\0\0\x03abc\0rest";
        assert_eq!(handle(results).unwrap(), FileHandle(b"abc".to_vec()));
    }

    #[test]
    fn another_status_is_an_error() {
        let error = handle(b"\0\0\0\x0d").unwrap_err();
        assert!(error.to_string().contains("13"));
    }
}
