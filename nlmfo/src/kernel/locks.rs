//! `/proc/locks`: the kernel's list of every file lock.

use std::fs::File;
use std::io;

/// Opens the list. Each read of it takes the kernel's lock on the list again and
/// gives at most a page of text.
pub fn open() -> io::Result<File> {
    File::open("/proc/locks")
}

/// Lines of holders in a piece of the list. A waiter's line has an arrow before
/// the lock's class (`lock_get_status`, fs/locks.c); the only other `>` is that
/// of `<none>`, for a lock without an inode.
pub fn holders(text: &[u8]) -> u64 {
    let count = |wanted| text.iter().filter(|&&byte| byte == wanted).count() as u64;
    count(b'\n') + count(b'<') - count(b'>')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiters_are_not_holders() {
        let text = b"1: POSIX  ADVISORY  WRITE 512 00:23:2 0 9\n\
                     1:  -> POSIX  ADVISORY  WRITE 512 00:23:2 0 9\n\
                     2: LEASE  BREAKING  BREAKER   READ 7 <none>:0 0 EOF\n";
        assert_eq!(holders(text), 2);
    }
}
