//! What the programs write and the tool reads: ring-buffer records and map
//! values. Plain integers in the machine's byte order, addresses in network
//! order; every struct's size is a multiple of 8 and asserted here.

use crate::Addr;

/// How many hosts one run of `read_hosts` takes: their records fit into the ring buffer.
pub const HOSTS_PER_RUN: usize = 512;

/// The type of a ring-buffer record, in its first four bytes. 6 to 9 are in
/// [`crate::state::kind`].
pub mod kind {
    /// A [`LockRecord`](super::LockRecord).
    pub const LOCK: u32 = 1;
    /// A [`FileRecord`](super::FileRecord).
    pub const FILE: u32 = 2;
    /// A [`WaiterRecord`](super::WaiterRecord).
    pub const WAITER: u32 = 3;
    /// A [`ShareRecord`](super::ShareRecord).
    pub const SHARE: u32 = 4;
    /// A [`HostRecord`](super::HostRecord).
    pub const HOST: u32 = 5;
}

/// The largest NFS file handle that lockd keeps (`NFS_MAXFHSIZE`, include/linux/nfs.h).
pub const FH_MAX: usize = 128;

/// Maximum bytes of a client's name or share owner in a record.
pub const NAME_MAX: usize = 64;

/// One held lock, written while `/proc/locks` is read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRecord {
    /// [`kind::LOCK`].
    pub kind: u32,
    /// `F_RDLCK` 0 or `F_WRLCK` 1.
    pub mode: u32,
    /// Address of the `file_lock`: which lock it is, within one pass.
    pub fl: u64,
    /// Address of the `nlm_lockowner`.
    pub owner: u64,
    /// Address of the `nlm_host`.
    pub host: u64,
    /// Address of the `struct file`, as in [`FileRecord::files`].
    pub file: u64,
    /// First byte of the range.
    pub start: u64,
    /// Last byte of the range; `i64::MAX` means to the end of the file.
    pub end: u64,
    /// The client's number for the lock owner (`nlm_lockowner.pid`).
    pub svid: u32,
    /// Always 0: keeps the struct without padding.
    pub pad: u32,
}

/// One `nlm_file`: a file that lockd holds open for its clients.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileRecord {
    /// [`kind::FILE`].
    pub kind: u32,
    /// The kernel's own `dev_t` encoding: major << 20 | minor.
    pub dev: u32,
    /// Address of the `nlm_file`.
    pub nlm_file: u64,
    /// Addresses of the files open for reading and for writing, 0 if not open.
    pub files: [u64; 2],
    /// Inode number.
    pub ino: u64,
    /// How many of lockd's locks the inode holds through this `nlm_file`.
    pub locks: u64,
    /// The sum of [`lock_digest`] over them.
    pub digest: u64,
    /// Length of the file handle in bytes.
    pub fh_len: u32,
    /// The bucket of `nlm_files` that the file is in.
    pub bucket: u32,
    /// The file handle: its first `fh_len` bytes.
    pub fh: [u8; FH_MAX],
}

/// One blocked request (`nlm_block`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaiterRecord {
    /// [`kind::WAITER`].
    pub kind: u32,
    /// `F_RDLCK` 0 or `F_WRLCK` 1.
    pub mode: u32,
    /// Address of the `nlm_block`.
    pub block: u64,
    /// Address of the `nlm_file`, as in [`FileRecord::nlm_file`].
    pub nlm_file: u64,
    /// Address of the `nlm_host`, as in [`HostRecord::host`].
    pub host: u64,
    /// First byte of the range.
    pub start: u64,
    /// Last byte of the range; `i64::MAX` means to the end of the file.
    pub end: u64,
    /// The client's number for the lock owner.
    pub svid: u32,
    /// Not 0: the lock is granted, and lockd is notifying the client.
    pub granted: u32,
}

/// One DOS share reservation (`nlm_share`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShareRecord {
    /// [`kind::SHARE`].
    pub kind: u32,
    /// `fsh_access`: 0 none, 1 read, 2 write, 3 both.
    pub access: u32,
    /// `fsh_mode`: what others are denied, in the same numbers.
    pub mode: u32,
    /// Length of the owner handle; `owner` holds its first bytes.
    pub owner_len: u32,
    /// Address of the `nlm_file`, as in [`FileRecord::nlm_file`].
    pub nlm_file: u64,
    /// Address of the `nlm_host`, as in [`HostRecord::host`].
    pub host: u64,
    /// The owner handle, cut after [`NAME_MAX`] bytes, followed by zeros.
    pub owner: [u8; NAME_MAX],
}

/// One lockd host (`nlm_host`): a client as seen through one server address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostRecord {
    /// [`kind::HOST`].
    pub kind: u32,
    /// NLM version: 1, 3 or 4.
    pub version: u32,
    /// Address of the `nlm_host`.
    pub host: u64,
    /// The server address that the client used.
    pub vip: Addr,
    /// The client's address.
    pub client: Addr,
    /// IP protocol number.
    pub proto: u32,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// `h_expires`, in jiffies: it changes with each call of the client.
    pub expires: u64,
    /// The cookie that lockd gave statd for this client; zeros if it is not monitored.
    pub nsm_priv: [u8; 16],
    /// The name that the client calls itself, NUL-terminated unless cut.
    pub name: [u8; NAME_MAX],
    /// The name that statd monitors, NUL-terminated unless cut.
    pub nsm_name: [u8; NAME_MAX],
}

/// Identifies a host that was reported to the tool.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostKey {
    /// The server address that the client used.
    pub vip: Addr,
    /// The client's address.
    pub client: Addr,
    /// NLM version.
    pub version: u32,
    /// IP protocol number.
    pub proto: u32,
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Always 0: keeps the struct without padding.
    pub pad: u32,
}

/// The same host is reported again after this many nanoseconds, so that a client that never stops
/// locking costs one record a minute.
pub const TELL_AGAIN_NS: u64 = 60_000_000_000;

/// What makes two observations of a lock the same lock: an order-free sum of
/// these over a file's locks is compared between the two walks of a snapshot.
/// FNV-style mixing, a word at a time: a change detector, no cryptography.
#[inline(always)]
pub fn lock_digest(fl: u64, owner: u64, start: u64, end: u64, mode: u32) -> u64 {
    const PRIME: u64 = 0x0000_0100_0000_01b3;
    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    sum = (sum ^ fl).wrapping_mul(PRIME);
    sum ^= sum >> 29;
    sum = (sum ^ owner).wrapping_mul(PRIME);
    sum ^= sum >> 31;
    sum = (sum ^ start).wrapping_mul(PRIME);
    sum ^= sum >> 30;
    sum = (sum ^ end).wrapping_mul(PRIME);
    sum ^= sum >> 32;
    (sum ^ mode as u64).wrapping_mul(PRIME)
}

/// What the reader and the snapshot programs tell each other: the only entry of its map, written
/// by one thread of ours at a time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// Address of the reading thread's `task_struct`; only its reads are recorded. 0 if no
    /// thread reads.
    pub reader: u64,
    /// Calls of `locks_show` that the reader caused.
    pub shown: u64,
    /// Records that did not fit into the ring buffer, and failed reads of kernel memory.
    pub lost: u64,
    /// The bucket of lockd's file table at which the walk is.
    pub bucket: u64,
    /// Records that the walk has written of this bucket so far.
    pub emitted: u64,
    /// How the walk ended; see [`walk`].
    pub walk: u64,
    /// Not 0: NFSv4's locks are recorded, not lockd's.
    pub states: u64,
    /// The inode number of the network namespace that `nfsd_netns` found; 0 if it found none.
    pub netns: u64,
    /// What a call of `locks_show` does, and how the last run ended; see [`list`].
    pub list: u64,
    /// The CPU whose list of locks is being walked.
    pub cpu: u64,
    /// The last lock that was passed in that list: the address of its `fl_link`, and the next
    /// pointer in it. 0 before the first lock.
    pub passed: [u64; 2],
    /// How many records of that list were written.
    pub listed: u64,
    /// The first lock of `/proc/locks`, until the walk has met it; then 0.
    pub first: u64,
    /// When the run ends, by `bpf_ktime_get_ns`.
    pub until: u64,
    /// Maximum nanoseconds of one run.
    pub limit: u64,
    /// Nanoseconds that the longest run took.
    pub longest: u64,
    /// The next request to read among those that wait behind the last lock read: the address of
    /// its `file_lock`; 0 if there is none.
    pub waiter: u64,
    /// Address of the inode of that lock.
    pub waited_inode: u64,
    /// How many runs ended among those requests.
    pub waited: u64,
    /// Not 0: the requests behind some lock are too many for the ring buffer, and not all were
    /// written.
    pub cut: u64,
}

/// How the kernel's lists of locks are read.
pub mod list {
    /// Each call of `locks_show` writes the lock that it is for.
    pub const ONE_BY_ONE: u64 = 0;
    /// The next call continues the walk where the last run ended.
    pub const WALK: u64 = 1;
    /// All lists were walked.
    pub const DONE: u64 = 2;
    /// The run's time is over, or the ring buffer is full: fetch the records, then continue.
    pub const PAUSED: u64 = 3;
    /// The lock where the last run ended has moved or is gone: walk that CPU's list again.
    pub const TORN: u64 = 4;
    /// The lists are not where the layout says.
    pub const UNKNOWN: u64 = 5;
}

/// How a run of the walk ended.
pub mod walk {
    /// All buckets were walked.
    pub const DONE: u64 = 0;
    /// The ring buffer is full, or the limit of steps is reached: fetch the records, then
    /// continue.
    pub const PAUSED: u64 = 1;
    /// The bucket's list changed during the walk: walk it again.
    pub const TORN: u64 = 2;
    /// Kernel memory could not be read, as when an entry was freed meanwhile;
    /// what the walk was looking at is added: a file, its locks, its waiters or
    /// its shares.
    pub const FAULT: u64 = 3;
}

crate::plain!(
    LockRecord: 64,
    FileRecord: 64 + FH_MAX,
    WaiterRecord: 56,
    ShareRecord: 32 + NAME_MAX,
    HostRecord: 80 + 2 * NAME_MAX,
    HostKey: 48,
    Control: 168,
);
