//! What the program that reads lockd's own sockets shares with the tool.

/// Number of sockets that fit into [`Sockets`]; lockd has up to four in a network namespace.
pub const ROOM: usize = 16;

/// One socket that lockd listens on, in the kernel's numbers.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// `AF_INET` 2 or `AF_INET6` 10.
    pub family: u16,
    /// `IPPROTO_TCP` 6 or `IPPROTO_UDP` 17.
    pub protocol: u16,
    /// In host byte order.
    pub port: u16,
    /// Always 0: keeps the struct without padding.
    pub pad: u16,
}

/// What one run found; the only entry of its map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sockets {
    /// One of [`outcome`].
    pub outcome: u32,
    /// How many of `found` are in use.
    pub count: u32,
    /// The NLM versions that lockd serves, bit N for version N.
    pub versions: u64,
    /// The sockets found in this thread's network namespace: the first `count`.
    pub found: [Socket; ROOM],
    /// Address of the list head in lockd's `svc_serv`. This and the fields below are of use
    /// during the walk only.
    pub head: u64,
    /// Address of the list entry at hand.
    pub node: u64,
    /// Address of the list entry before it.
    pub before: u64,
    /// Address of this thread's `struct net`.
    pub net: u64,
}

/// How a run ended.
pub mod outcome {
    /// The walk did not reach the end of the list.
    pub const CUT: u32 = 0;
    /// The whole list was read.
    pub const DONE: u32 = 1;
    /// lockd serves in no network namespace.
    pub const NOT_SERVING: u32 = 2;
    /// What `nlmsvc_serv` points to is not the NLM service.
    pub const FOREIGN: u32 = 3;
    /// The list changed meanwhile.
    pub const TORN: u32 = 4;
    /// More sockets than there is room for.
    pub const FULL: u32 = 5;
    /// Memory could not be read.
    pub const FAULT: u32 = 6;
}

/// Byte offsets of the fields, each from the start of the struct that the name begins
/// with.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketsLayout {
    /// Address of lockd's `nlmsvc_serv`, a `struct svc_serv *`.
    pub nlmsvc_serv: u64,
    /// `svc_serv.sv_permsocks`: a `list_head` of `svc_xprt.xpt_list`.
    pub serv_permsocks: u32,
    /// `svc_serv.sv_program`, from 6.12 `sv_programs`: a `struct svc_program *`.
    pub serv_program: u32,
    /// `svc_program.pg_prog`, 4 bytes.
    pub program_number: u32,
    /// `svc_program.pg_nvers`, 4 bytes: entries of `pg_vers`.
    pub program_versions: u32,
    /// `svc_program.pg_vers`: an array of pointers, null where there is no such version.
    pub program_table: u32,
    /// `svc_xprt.xpt_list`.
    pub xprt_list: u32,
    /// `svc_xprt.xpt_net`, a `struct net *`.
    pub xprt_net: u32,
    /// `svc_sock.sk_xprt`, the `svc_xprt` inside.
    pub sock_xprt: u32,
    /// `svc_sock.sk_sk`, a `struct sock *`.
    pub sock_sk: u32,
    /// `sock.__sk_common.skc_num`, 2 bytes, host byte order.
    pub sk_num: u32,
    /// `sock.__sk_common.skc_family`, 2 bytes.
    pub sk_family: u32,
    /// `sock.sk_protocol`, 2 bytes.
    pub sk_protocol: u32,
    /// `task_struct.nsproxy`.
    pub task_nsproxy: u32,
    /// `nsproxy.net_ns`.
    pub nsproxy_net: u32,
}

impl SocketsLayout {
    /// Every field 0: what the program is built with, and the loader replaces.
    // SAFETY: integers only; all-zero bytes are a value of each.
    pub const UNSET: Self = unsafe { core::mem::zeroed() };
}

crate::plain!(
    Socket: 8,
    Sockets: 16 + 8 * ROOM + 32,
    SocketsLayout: 8 + 14 * 4,
);
