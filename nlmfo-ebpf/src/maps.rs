//! The maps that the programs share with the tool or with each other.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use nlmfo_common::Addr;
use nlmfo_common::counters::{Counters, Counters4};
use nlmfo_common::layout::FL_SPAN_MAX;
use nlmfo_common::record::{Control, HOSTS_PER_RUN, HostKey};

/// Records of a snapshot. The reader empties it after each run. A full ring only ends a run
/// early.
#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

/// What the reader asks for, and how far a snapshot's programs came.
#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// Addresses of the hosts whose records the tool wants.
#[map]
pub static HOSTS: Array<[u64; HOSTS_PER_RUN]> = Array::with_max_entries(1, 0);

/// Where `kernel::FileLock` copies to.
#[map]
pub static FILE_LOCK: PerCpuArray<[u8; FL_SPAN_MAX]> = PerCpuArray::with_max_entries(1, 0);

/// Counters per VIP. Not an LRU map: on many CPUs such a map may evict an entry long before it
/// is full.
#[map]
pub static COUNTERS: PerCpuHashMap<Addr, Counters> = PerCpuHashMap::with_max_entries(1024, 0);

/// Events that were not counted: `COUNTERS` was full, or the host has no address.
#[map]
pub static UNCOUNTED: Array<u64> = Array::with_max_entries(1, 0);

/// A LOCK call between entry and return.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Call {
    pub thread: u64,
    pub host: u64,
    pub began: u64,
    pub reclaim: u64,
}

/// LOCK calls in progress, indexed by the low bits of the thread ID. lockd has one thread on
/// every kernel seen, and an array lookup is the cheapest. If a second thread uses the same
/// slot, its ID differs and only its latency is not counted.
#[map]
pub static CALLS: Array<Call> = Array::with_max_entries(CALL_SLOTS, 0);
/// Slots of [`CALLS`].
pub const CALL_SLOTS: u32 = 64;

/// An UNLOCK between its entry and the cancel that it starts with.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Unlocking {
    pub thread: u64,
    /// Address of the `nlm_lock`, which the cancel is called with too.
    pub lock: u64,
}

/// UNLOCK calls in progress, in the same slots as [`CALLS`].
#[map]
pub static UNLOCKING: Array<Unlocking> = Array::with_max_entries(CALL_SLOTS, 0);

/// Why a thread releases locks, while it does so (`counters::cause`).
#[map]
pub static CAUSES: LruHashMap<u64, u32> = LruHashMap::with_max_entries(256, 0);

/// Grants that the client was notified of at least once: `nlm_rqst` address → its cookie.
#[map]
pub static GRANTS_TOLD: LruHashMap<u64, u32> = LruHashMap::with_max_entries(16384, 0);

/// The counters of a VIP that is seen for the first time: zeros. In a map because they are
/// too large for the stack.
#[map]
pub static NO_COUNTS: Array<Counters> = Array::with_max_entries(1, 0);

/// NFSv4's counters per VIP, as [`COUNTERS`].
#[map]
pub static COUNTERS4: PerCpuHashMap<Addr, Counters4> = PerCpuHashMap::with_max_entries(1024, 0);

/// As [`NO_COUNTS`], for NFSv4.
#[map]
pub static NO_COUNTS4: Array<Counters4> = Array::with_max_entries(1, 0);
/// As [`UNCOUNTED`], for NFSv4.
#[map]
pub static UNCOUNTED4: Array<u64> = Array::with_max_entries(1, 0);

/// How many file handles nfsd has refused NFSv4 clients, at least 1 if any.
#[map]
pub static HANDLES_REFUSED4: Array<u64> = Array::with_max_entries(1, 0);

/// An OPEN or LOCK of NFSv4 between entry and return.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Call4 {
    /// Address of the `svc_rqst`.
    pub request: u64,
    /// Address of the `nfsd4_op_u`.
    pub operation: u64,
}

/// Calls in progress, by thread: nfsd has many.
#[map]
pub static CALLS4: LruHashMap<u64, Call4> = LruHashMap::with_max_entries(16384, 0);

/// A `HostRecord` for each host that lockd asks statd to monitor.
#[map]
pub static MONITORED: RingBuf = RingBuf::with_byte_size(1 << 19, 0);

/// When the last record of a host was sent, by `bpf_ktime_get_ns`.
#[map]
pub static TOLD: LruHashMap<HostKey, u64> = LruHashMap::with_max_entries(65536, 0);

/// Hosts whose record was lost because `MONITORED` was full.
#[map]
pub static UNTOLD: Array<u64> = Array::with_max_entries(1, 0);
