//! The gate's maps, but for those that one file alone uses. All are pinned: they are what a
//! window consists of.

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

/// The least recently used connection gives way; if it was alive, it is closed when
/// it sends next.
#[map]
pub static CONNECTIONS: LruHashMap<Flow, Connection> = LruHashMap::with_max_entries(16384, 0);

/// Connections that a CPU is at: at most one each. A map, because Rust's atomics do
/// not exchange on BPF, and a `bpf_spin_lock` may not be held over a helper.
#[map]
pub static BUSY: HashMap<Flow, u32> = HashMap::with_max_entries(1024, 0);

/// What a new connection begins as: too large for the stack.
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

/// Violations so far, those that [`VIOLATIONS`] has no room for too.
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
