//! Why a client book cannot be read or written.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;

use super::line;
use crate::files::FileError;

/// Why a client book cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BookError {
    #[error("cannot access the client book {}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Read(#[from] FileError),
    #[error(
        "{} is damaged, or not a client book: move it away; {} is then rebuilt from the clients that \
         lock from now on", path.display(), path.display()
    )]
    Damaged { path: PathBuf },
    #[error(
        "the client book {} has the schema {schema:?}, but this nlmfo reads {:?}: use the same nlmfo \
         version on all nodes", path.display(), line::SCHEMA
    )]
    Foreign { path: PathBuf, schema: String },
    #[error(
        "the client book of {vip} belongs to node {node} (term {term}); only its owner can write, \
         and a takeover on this node makes it the owner"
    )]
    Owned {
        vip: IpAddr,
        node: String,
        term: u64,
    },
}
