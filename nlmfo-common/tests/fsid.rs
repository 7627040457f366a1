//! The filesystem that a file handle names, by the layouts of fs/nfsd/nfsfh.h (6.1,
//! 6.12): a header, a filesystem id whose kind gives its length, a file id.

use nlmfo_common::nlm_call::{Fsid, HANDLE_WORDS};

/// Words 1 to 7 are all different; word 0 is the header.
fn handle(version: u8, fsid_kind: u8, file_kind: u8) -> [u32; HANDLE_WORDS] {
    let mut words = [0, 1, 2, 3, 4, 5, 6, 7].map(|word| word * 0x0101_0101);
    words[0] = u32::from_ne_bytes([version, 0, fsid_kind, file_kind]);
    words
}

/// Kinds and their lengths in words, as `key_len` has them.
const KINDS: [(u8, usize); 8] = [
    (0, 2),
    (1, 1),
    (2, 3),
    (3, 2),
    (4, 2),
    (5, 2),
    (6, 4),
    (7, 6),
];

#[test]
fn each_kind_has_its_length() {
    for (kind, len) in KINDS {
        let words = handle(1, kind, 1);
        let Fsid(fsid) = Fsid::of_handle(&words).expect("knfsd has this kind");
        assert_eq!(fsid[0], kind.into());
        assert_eq!(fsid[1..=len], words[1..=len], "kind {kind}");
        assert!(fsid[1 + len..].iter().all(|&word| word == 0), "kind {kind}");
    }
}

#[test]
fn files_of_one_filesystem_have_one_id() {
    for (kind, len) in KINDS {
        let one = handle(1, kind, 1);
        let mut other = handle(1, kind, 0x81);
        other[1 + len..].fill(0x5555_5555);
        assert_eq!(
            Fsid::of_handle(&one),
            Fsid::of_handle(&other),
            "kind {kind}"
        );
    }
}

#[test]
fn filesystems_differ_by_each_word_and_by_kind() {
    for (kind, len) in KINDS {
        let fsid = Fsid::of_handle(&handle(1, kind, 1));
        for word in 1..=len {
            let mut other = handle(1, kind, 1);
            other[word] ^= 1;
            assert_ne!(fsid, Fsid::of_handle(&other), "kind {kind}, word {word}");
        }
        for (other, _) in KINDS.into_iter().filter(|&(other, _)| other != kind) {
            let other = Fsid::of_handle(&handle(1, other, 1));
            assert_ne!(fsid, other, "kind {kind}");
        }
    }
}

#[test]
fn what_is_not_of_knfsd_has_none() {
    assert_eq!(Fsid::of_handle(&[0; HANDLE_WORDS]), None);
    for version in [0, 2, 255] {
        assert_eq!(Fsid::of_handle(&handle(version, 1, 1)), None);
    }
    for kind in 8..=u8::MAX {
        assert_eq!(Fsid::of_handle(&handle(1, kind, 1)), None, "kind {kind}");
    }
}
