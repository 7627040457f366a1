//! Locks that no NFS client has: those of processes on this node. Pure.

use std::collections::HashMap;

use super::states::StateTable;
use super::table::{FileInfo, Inode, LockTable, Mode, Range};
use crate::kernel::locks::Listed;

/// What is in the kernel's list and in neither table.
pub fn locals(all: Vec<Listed>, nlm: &LockTable, states: &StateTable) -> Vec<Listed> {
    let mut of_nfs: HashMap<(Inode, bool, u64, u64), usize> = HashMap::new();
    let of_nlm = nlm.locks.iter().map(|lock| {
        let file = nlm.file(lock.file);
        (file.inode(), lock.mode, lock.range)
    });
    let of_nfs4 = states.states.iter().flat_map(|state| {
        let inode = state.file.as_ref().map(FileInfo::inode);
        let ranges = state.ranges.iter();
        ranges.filter_map(move |&(mode, range)| Some((inode?, mode, range)))
    });
    for (inode, mode, range) in of_nlm.chain(of_nfs4) {
        let key = (inode, mode == Mode::Write, range.start, range.end);
        *of_nfs.entry(key).or_default() += 1;
    }
    let mut locals = all;
    locals.retain(|lock| {
        // Delegations and layouts are nfsd's own.
        if matches!(&*lock.class, "DELEG" | "LAYOUT") {
            return false;
        }
        let inode = (lock.major, lock.minor, lock.ino);
        let end = lock.end.unwrap_or(Range::EOF);
        let known = of_nfs.get_mut(&(inode, lock.write, lock.start, end));
        match known.filter(|left| lock.class == "POSIX" && **left > 0) {
            Some(left) => {
                *left -= 1;
                false
            }
            None => true,
        }
    });
    locals
}
