//! The gate's maps, except those that only one file uses. All are pinned: a window consists of
//! them.

use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuHashMap};
use nlmfo_common::Addr;
use nlmfo_common::gate::{
    Audited, Connection, Flow, Gate, Gated, Note, NoteKey, VIOLATIONS as VIOLATIONS_KEPT,
    Violation, Window,
};
use nlmfo_common::nlm_call::Fsid;

#[map]
pub static GATE: Array<Gate> = Array::with_max_entries(1, 0);

#[map]
pub static WINDOWS: HashMap<Addr, Window> = HashMap::with_max_entries(1024, 0);

/// The filesystems on which new locks are refused through every address.
#[map]
pub static SCOPES: HashMap<Fsid, u64> = HashMap::with_max_entries(1024, 0);

/// lockd's ports, a bit each: first all of TCP, then all of UDP.
#[map]
pub static PORTS: Array<u64> = Array::with_max_entries(2 * PORT_WORDS, 0);
pub const PORT_WORDS: u32 = 65536 / 64;

/// The NFS server's ports that are muted, a bit each like those of [`PORTS`].
#[map]
pub static MUTED: Array<u64> = Array::with_max_entries(2 * PORT_WORDS, 0);

/// When the map is full, the least recently used connection is evicted; if it was alive, it is
/// closed at its next segment.
#[map]
pub static CONNECTIONS: LruHashMap<Flow, Connection> = LruHashMap::with_max_entries(16384, 0);

/// Connections that a CPU is handling: at most one per CPU. A map, because Rust has no atomic
/// exchange on BPF, and a `bpf_spin_lock` cannot be held across a helper call.
#[map]
pub static BUSY: HashMap<Flow, u32> = HashMap::with_max_entries(1024, 0);

/// The initial value of a new connection: too large for the stack.
#[map]
pub static FRESH: Array<Connection> = Array::with_max_entries(1, 0);

#[map]
pub static NOTES: LruHashMap<NoteKey, Note> = LruHashMap::with_max_entries(65536, 0);

#[map]
pub static GATED: PerCpuHashMap<Addr, Gated> = PerCpuHashMap::with_max_entries(1024, 0);

#[map]
pub static AUDITED: HashMap<Addr, Audited> = HashMap::with_max_entries(1024, 0);

#[map]
pub static VIOLATIONS: Array<Violation> = Array::with_max_entries(VIOLATIONS_KEPT, 0);

/// Number of violations, including those that did not fit into [`VIOLATIONS`].
#[map]
pub static VIOLATION_COUNT: Array<u64> = Array::with_max_entries(1, 0);

/// Counts what the gate does for the VIP.
#[inline(always)]
pub fn count(vip: &Addr, add: impl FnOnce(&mut Gated)) {
    let known = GATED.get_ptr_mut(vip).or_else(|| {
        // BPF_NOEXIST
        let _ = GATED.insert(vip, Gated::default(), 1);
        GATED.get_ptr_mut(vip)
    });
    if let Some(gated) = known {
        // SAFETY: this CPU's value, and softirqs do not nest.
        add(unsafe { &mut *gated });
    }
}
