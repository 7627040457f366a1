//! The maps that the programs share with the tool or with each other.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use nlmfo_common::Addr;
use nlmfo_common::counters::Counters;
use nlmfo_common::layout::FL_SPAN_MAX;
use nlmfo_common::record::{Control, HOSTS_PER_RUN, HostKey};

/// Records of a snapshot. A read of `/proc/locks` shows at most a page of text,
/// so the reader empties this after some eighty records: it cannot overflow
/// while he does.
#[map]
pub static RECORDS: RingBuf = RingBuf::with_byte_size(1 << 20, 0);

#[map]
pub static CONTROL: Array<Control> = Array::with_max_entries(1, 0);

/// Addresses of the hosts that the tool wants records of.
#[map]
pub static HOSTS: Array<[u64; HOSTS_PER_RUN]> = Array::with_max_entries(1, 0);

/// Where `kernel::FileLock` copies to.
#[map]
pub static FILE_LOCK: PerCpuArray<[u8; FL_SPAN_MAX]> = PerCpuArray::with_max_entries(1, 0);

/// Counters per VIP. Not an LRU map: with many CPUs that may drop an entry long
/// before it is full.
#[map]
pub static COUNTERS: PerCpuHashMap<Addr, Counters> = PerCpuHashMap::with_max_entries(1024, 0);

/// Events that found no room in `COUNTERS`, or no address in their host.
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

/// Calls under way, at the thread id's low bits: lockd is one thread on every
/// kernel seen, and an array lookup is the cheapest there is. A second thread
/// on the same slot is noticed by its id and goes uncounted in latency only.
#[map]
pub static CALLS: Array<Call> = Array::with_max_entries(CALL_SLOTS, 0);
pub const CALL_SLOTS: u32 = 64;

/// An UNLOCK between its entry and the cancel that it begins with.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Unlocking {
    pub thread: u64,
    /// Address of the `nlm_lock`, which the cancel is called with too.
    pub lock: u64,
}

/// Unlocks under way, at the same slots as [`CALLS`].
#[map]
pub static UNLOCKING: Array<Unlocking> = Array::with_max_entries(CALL_SLOTS, 0);

/// Why a thread is dropping locks, while it does (`counters::cause`).
#[map]
pub static CAUSES: LruHashMap<u64, u32> = LruHashMap::with_max_entries(256, 0);

/// Grants already told once: `nlm_rqst` address → the cookie that it carried.
#[map]
pub static GRANTS_TOLD: LruHashMap<u64, u32> = LruHashMap::with_max_entries(16384, 0);

/// A VIP's counters as they are when it is seen for the first time. A map's
/// value, as it is too large for the stack.
#[map]
pub static NO_COUNTS: Array<Counters> = Array::with_max_entries(1, 0);

/// A `HostRecord` for each host that was to be monitored.
#[map]
pub static MONITORED: RingBuf = RingBuf::with_byte_size(1 << 19, 0);

/// When the tool was last told of a host, by `bpf_ktime_get_ns`.
#[map]
pub static TOLD: LruHashMap<HostKey, u64> = LruHashMap::with_max_entries(65536, 0);

/// Hosts that the tool could not be told of.
#[map]
pub static UNTOLD: Array<u64> = Array::with_max_entries(1, 0);
