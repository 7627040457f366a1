//! `--scope filesystem`: the filesystems on which new locks are refused through every address.

use std::path::PathBuf;

use nlmfo_common::nlm_call::{Fsid, HANDLE_WORDS};

use super::GraceError;
use crate::kernel::nfsd::Nfsd;

/// The filesystems of exported directories, as knfsd's file handles name them.
pub fn of_folders(folders: &[PathBuf]) -> Result<Vec<Fsid>, GraceError> {
    folders
        .iter()
        .map(|folder| {
            let handle = Nfsd::mounted()?.root_handle(folder)?;
            of_handle(&handle).ok_or_else(|| GraceError::Handle(folder.clone()))
        })
        .collect()
}

/// The filesystem in a whole handle.
fn of_handle(handle: &[u8]) -> Option<Fsid> {
    let mut words = [0; HANDLE_WORDS];
    for (word, bytes) in words.iter_mut().zip(handle.chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into().ok()?);
    }
    Fsid::of_handle(&words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handles_of_one_filesystem_have_one_fsid() {
        let root = [
            1, 0, 6, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16,
        ];
        let mut file = [&root[..], &[0xaa; 12]].concat();
        file[3] = 0x81;
        assert!(of_handle(&root).is_some());
        assert_eq!(of_handle(&root), of_handle(&file));
        file[4] ^= 1;
        assert_ne!(of_handle(&root), of_handle(&file));
        assert_eq!(of_handle(&[2, 0, 1, 0, 0, 0, 0, 0]), None);
    }
}
