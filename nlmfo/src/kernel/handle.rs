//! The file handles that knfsd gives out, as lockd keeps them.
//!
//! Layout after fs/nfsd/nfsfh.h and `fh_compose()`, 6.1 to 7.3: a version (1), an
//! unused byte, the kind of filesystem id, the kind of file id; then both ids, in
//! the byte order of the server.

use std::fmt;

use nlmfo_common::nlm_call::Fsid;

const VERSION: u8 = 1;
/// The file id is the root of the export, and has no bytes.
const ROOT: u8 = 0;

/// The part of a handle that names the file within its filesystem, as
/// `open_by_handle_at(2)` takes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileId {
    /// One of `enum fid_type` of include/linux/exportfs.h, or the filesystem's own.
    pub kind: u8,
    pub bytes: Vec<u8>,
}

/// Why an NFS file handle does not identify a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    #[error("the NFS file handle is truncated")]
    Cut,
    #[error("the NFS file handle has the unknown version {0}")]
    Version(u8),
    #[error("the NFS file handle has a filesystem ID of the unknown kind {0}")]
    Filesystem(u8),
    #[error("the NFS file handle is that of the export's root")]
    Root,
}

impl FileId {
    /// The file's part of a whole handle.
    pub fn parse(handle: &[u8]) -> Result<Self, HandleError> {
        let &[version, _, filesystem, kind, ref ids @ ..] = handle else {
            return Err(HandleError::Cut);
        };
        if version != VERSION {
            return Err(HandleError::Version(version));
        }
        let filesystem_words =
            Fsid::words_of(filesystem).ok_or(HandleError::Filesystem(filesystem))?;
        if kind == ROOT {
            return Err(HandleError::Root);
        }
        match ids.get(4 * filesystem_words..) {
            Some(bytes) if !bytes.is_empty() => Ok(FileId {
                kind,
                bytes: bytes.to_vec(),
            }),
            _ => Err(HandleError::Cut),
        }
    }
}

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x}:", self.kind)?;
        self.bytes
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_filesystem_id_has_its_length() {
        for (kind, len) in [
            (0, 8),
            (1, 4),
            (2, 12),
            (3, 8),
            (4, 8),
            (5, 8),
            (6, 16),
            (7, 24),
        ] {
            let mut handle = vec![1, 0, kind, 0x81];
            handle.extend(vec![0xee; len]);
            assert_eq!(FileId::parse(&handle), Err(HandleError::Cut));
            handle.extend([1, 2, 3, 4]);
            let id = FileId::parse(&handle).unwrap();
            assert_eq!(
                id,
                FileId {
                    kind: 0x81,
                    bytes: vec![1, 2, 3, 4]
                }
            );
        }
    }

    #[test]
    fn what_is_not_a_handle_is_said() {
        assert_eq!(FileId::parse(&[1, 0, 1]), Err(HandleError::Cut));
        assert_eq!(
            FileId::parse(&[2, 0, 1, 1, 0, 0]),
            Err(HandleError::Version(2))
        );
        assert_eq!(
            FileId::parse(&[1, 0, 9, 1, 0, 0]),
            Err(HandleError::Filesystem(9))
        );
        assert_eq!(
            FileId::parse(&[1, 0, 1, 0, 0, 0, 0, 0]),
            Err(HandleError::Root)
        );
    }
}
