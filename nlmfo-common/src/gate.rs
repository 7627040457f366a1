//! What the grace gate and the audit share with the tool: what to do for each VIP, and the result.
//! Times are nanoseconds of `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns`; 0 means never.

use crate::Addr;
use crate::layout::Layout;
use crate::record::FH_MAX;
use crate::stream::Follower;

/// The socket mark (`SO_MARK`) of nlmfo's own calls to lockd, which pass a fence.
/// Only processes with `CAP_NET_ADMIN` on this node can set it: it is not sent over the network.
pub const OWN_MARK: u32 = 0x6e6c_6d66;

/// Version of everything that is pinned: the maps of this file and the programs
/// that share them. Raise it with every change.
pub const PINNED_VERSION: u32 = 4;

/// What the gate does for one VIP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Start of grace. Older connections are closed, since it is unknown where their calls begin.
    pub opened: u64,
    /// End of grace.
    pub until: u64,
    /// End of the fence: until then, nothing reaches lockd.
    pub fenced_until: u64,
    /// Start of the audit, which lasts to `until`: calls that were in lockd's queue when the window
    /// opened are answered by this time.
    pub audited_from: u64,
    /// Not 0 if lockd served the VIP when grace began, without a fence: new locks may have been
    /// granted before.
    pub late: u64,
    /// Until then, packets to nfsd's ports that nothing listens on are dropped; the kernel would
    /// refuse them.
    pub muted_until: u64,
}

/// What applies to all VIPs; the only entry of its map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gate {
    /// The latest end of any window, fence or scope: after it, packets are let through unread.
    pub until: u64,
    /// From `scope_opened` until this time, new locks on the filesystems of the scope are refused
    /// through every address.
    pub scope_until: u64,
    /// When that refusal began.
    pub scope_opened: u64,
    /// Address of the network namespace's `struct net`.
    pub net: u64,
    /// A random number that [`decided_priority`] depends on.
    pub secret: u64,
}

/// The two ends of a connection or datagram; ports in host byte order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The client's address.
    pub client: Addr,
    /// The server's address.
    pub vip: Addr,
    /// The client's port.
    pub client_port: u16,
    /// The server's port: one of lockd's.
    pub server_port: u16,
    /// Always 0: keeps the struct without padding.
    pub pad: u32,
}

/// The `skb->priority` of a packet that the gate decided on and let through. The guard at the socket,
/// and the gate on the next device, recognize the packet by it. Nothing between ingress and a local
/// socket reads that field. The value is valid only for this flow, and a process that sets the priority
/// of its own packets cannot guess it.
#[inline(always)]
pub fn decided_priority(secret: u64, flow: &Flow) -> u32 {
    // SAFETY: 40 bytes of plain integers without padding, whatever their values.
    let words: [u32; 10] = unsafe { core::mem::transmute(*flow) };
    let mut sum = secret;
    for word in words {
        sum = (sum ^ word as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        sum ^= sum >> 32;
    }
    // Never one of the small numbers that every process may set.
    sum as u32 | 1 << 31
}

/// A followed connection.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// The readers of its calls.
    pub follower: Follower,
    /// `opened` of the window for which it is followed.
    pub opened: u64,
}

/// Identifies the call that an answer of lockd belongs to.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoteKey {
    /// The client's address.
    pub client: Addr,
    /// The client's port, in host byte order.
    pub port: u16,
    /// Always 0: keeps the struct without padding.
    pub pad: u16,
    /// The RPC transaction ID, in host byte order.
    pub xid: u32,
}

/// What the gate saw of a call with a `reclaim` word, and did.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// When the gate decided on the call.
    pub at: u64,
    /// The word as the client sent it.
    pub sent: u32,
    /// The word as lockd gets it.
    pub written: u32,
    /// Not 0 if lockd has answered the call, or handled it without an answer.
    pub is_answered: u32,
    /// Always 0: keeps the struct without padding.
    pub pad: u32,
}

/// What the gate did for one VIP, per CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gated {
    /// New locks that were made to look like reclaims, so that lockd refuses them.
    pub new: u64,
    /// Reclaims that were made to look like new locks, so that lockd grants them.
    pub reclaims: u64,
    /// Calls left as they were, because the kernel itself was in grace.
    pub left: u64,
    /// Calls that were sent again.
    pub repeated: u64,
    /// SHARE calls that were dropped.
    pub shares: u64,
    /// Packets dropped because they came out of order, or could not be read.
    pub dropped: u64,
    /// Segments turned into a reset, to close a connection that cannot be followed.
    pub closed: u64,
    /// Packets dropped at the fence.
    pub fenced: u64,
    /// Packets that reached lockd's sockets undecided, and were dropped there.
    pub guarded: u64,
}

/// lockd's answers to LOCK calls in a VIP's window, by what they mean.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Audited {
    /// A reclaim was granted.
    pub reclaimed: u64,
    /// A new lock was refused because of grace.
    pub refused: u64,
    /// A reclaim was refused because of grace: its client has lost the lock.
    pub reclaims_refused: u64,
    /// A reclaim failed for another reason, such as a conflict or a missing file.
    pub reclaims_failed: u64,
    /// A new lock was not granted for another reason.
    pub other: u64,
    /// A lock was granted to a call that was not a reclaim, or that the gate did not see.
    pub violations: u64,
    /// Calls that the gate saw and lockd answered; a call that is answered again counts once.
    pub answered: u64,
    /// Answers (other than violations) to calls that the gate did not see, or saw with another
    /// `reclaim` word than lockd read.
    pub unseen: u64,
}

/// How grace was violated.
pub mod violation {
    /// A lock was granted to a call that was not a reclaim on the wire.
    pub const NEW_LOCK: u32 = 1;
    /// A lock was granted, and the gate has seen no such call.
    pub const UNSEEN: u32 = 2;
    /// A blocked request was granted.
    pub const WAITER: u32 = 3;
    /// A request that was not a reclaim was queued as blocked.
    pub const QUEUED: u32 = 4;
}

/// One violation in detail.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// When lockd granted or queued the lock.
    pub at: u64,
    /// The server address of the `nlm_host`.
    pub vip: Addr,
    /// The address of the `nlm_host`'s client; zeros if it could not be read.
    pub client: Addr,
    /// One of [`violation`]; 0 while the entry is being written.
    pub kind: u32,
    /// The RPC transaction ID, in host byte order; 0 for [`violation::WAITER`], which is no answer.
    pub xid: u32,
    /// The client's port, in host byte order; 0 if it is not known.
    pub port: u32,
    /// The client's number for the lock owner.
    pub svid: u32,
    /// `F_RDLCK` 0 or `F_WRLCK` 1.
    pub mode: u32,
    /// Length of the file handle in bytes; 0 if it is not known.
    pub fh_len: u32,
    /// First byte of the range.
    pub start: u64,
    /// Last byte of the range; `i64::MAX` means to the end of the file.
    pub end: u64,
    /// The file handle: its first `fh_len` bytes.
    pub fh: [u8; FH_MAX],
}

/// Number of violations kept in detail; more are only counted.
pub const VIOLATIONS: u32 = 64;

/// Byte offsets of the fields that only the gate and the audit read, besides those of [`Layout`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateLayout {
    /// The offsets that all programs share.
    pub common: Layout,
    /// Address of grace.ko's `grace_net_id`, an `unsigned int`.
    pub grace_net_id: u64,
    /// `net.gen`, a `struct net_generic *`.
    pub net_gen: u32,
    /// `net_generic.ptr`, an array of pointers.
    pub net_generic_ptr: u32,
    /// `task_struct.nsproxy`.
    pub task_nsproxy: u32,
    /// `nsproxy.net_ns`.
    pub nsproxy_net: u32,
    /// `svc_rqst.rq_addr`, a `sockaddr_storage`: the client.
    pub rqst_addr: u32,
    /// `svc_rqst.rq_xid`, 4 bytes, network byte order.
    pub rqst_xid: u32,
    /// `svc_serv.sv_name`, a `char *`.
    pub serv_name: u32,
    /// `svid` in the type of [`Layout::lock_fl`], 4 bytes.
    pub lock_svid: u32,
    /// `sock_common.skc_net`, a `struct net *`.
    pub sock_net: u32,
    /// `sock.sk_backlog.tail`, a pointer: null if the backlog is empty.
    pub sock_backlog: u32,
    /// `tcp_sock.out_of_order_queue`, a pointer: null if it is empty.
    pub tcp_gap: u32,
    /// `tcp_sock.rx_opt.ts_recent_stamp`, 4 bytes: of a listener, when it last sent SYN
    /// cookies; 0 if it never did.
    pub tcp_cookies: u32,
}

impl GateLayout {
    /// Every field 0: what the programs are built with, and the loader replaces.
    // SAFETY: integers only; all-zero bytes are a value of each.
    pub const UNSET: Self = unsafe { core::mem::zeroed() };
}

crate::plain!(
    Window: 48,
    Gate: 40,
    Flow: 40,
    NoteKey: 24,
    Note: 24,
    Gated: 72,
    Audited: 64,
    Violation: 80 + FH_MAX,
    Follower: 5 * 96 + 16,
    Connection: size_of::<Follower>() + 8,
    GateLayout: size_of::<Layout>() + 56,
);
