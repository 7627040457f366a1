//! NFSv4: where nfsd's fields are, and the records of the state that it holds.

use crate::Addr;
use crate::record::FH_MAX;

/// Bytes of a client's or an owner's name that a record carries; NFSv4 allows 1024.
pub const OWNER_MAX: usize = 128;

/// Where nfsd's fields are, like [`crate::layout::Layout`] for lockd. All zeros if nfsd is not in
/// the kernel or cannot be read.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateLayout {
    /// Address of nfsd's `nfsd_posix_mng_ops`: a lock with these `fl_lmops` is an NFSv4
    /// lock.
    pub posix_ops: u64,
    /// `nfsd_lease_mng_ops`: the lease of a delegation.
    pub lease_ops: u64,
    /// `nfsd4_layouts_lm_ops`: the lease of a layout; 0 for an nfsd without pNFS.
    pub layout_ops: u64,

    /// `file_lease.fl_lmops`, before 6.9 `file_lock.fl_lmops`.
    pub lease_lmops: u32,
    /// `nfs4_lockowner.lo_owner`, a `nfs4_stateowner`.
    pub lockowner_owner: u32,
    /// `file_lock.fl_blocked_requests`, from 6.9 `file_lock.c.flc_blocked_requests`: a
    /// `list_head` of `fl_blocked_member`.
    pub blocked_requests: u32,
    /// `fl_blocked_member` of a request that waits.
    pub blocked_member: u32,
    /// `fl_blocker`: what it waits behind.
    pub blocker: u32,

    /// `seq_file.private`: while `clients/N/states` is read, the `nfs4_client`.
    pub seq_private: u32,

    /// `nfs4_client.cl_name.len`, 4 bytes.
    pub client_name_len: u32,
    /// `nfs4_client.cl_name.data`, a pointer: the owner string.
    pub client_name_data: u32,
    /// `nfs4_client.cl_addr`, a `sockaddr_storage`: where the client introduced itself from.
    pub client_addr: u32,
    /// `nfs4_client.cl_clientid`, 8 bytes: `cl_boot`, `cl_id`.
    pub client_id: u32,
    /// `nfs4_client.cl_minorversion`, 4 bytes.
    pub client_minor: u32,
    /// `nfs4_client.cl_flags`, 8 bytes.
    pub client_flags: u32,
    /// `nfs4_client.cl_cb_conn.cb_saddr`, a `sockaddr_storage`: for an NFSv4.0 client, the
    /// server address that it used.
    pub client_cb_saddr: u32,
    /// `nfs4_client.cl_sessions`, a `list_head` of `nfsd4_session.se_perclnt`.
    pub client_sessions: u32,
    /// `nfs4_client.net`.
    pub client_net: u32,
    /// `nfsd4_session.se_perclnt`.
    pub session_list: u32,
    /// `nfsd4_session.se_conns`, a `list_head` of `nfsd4_conn.cn_persession`.
    pub session_conns: u32,
    /// `nfsd4_conn.cn_persession`.
    pub conn_list: u32,
    /// `nfsd4_conn.cn_xprt`.
    pub conn_xprt: u32,
    /// `svc_xprt.xpt_local`, a `sockaddr_storage`.
    pub xprt_local: u32,
    /// `svc_xprt.xpt_remote`, a `sockaddr_storage`.
    pub xprt_remote: u32,

    /// `nfs4_stid.sc_type`; its low byte holds every value.
    pub stid_type: u32,
    /// `nfs4_stid.sc_status`, 2 bytes, from 6.9; before, 0.
    pub stid_status: u32,
    /// `nfs4_stid.sc_stateid`, 16 bytes.
    pub stid_id: u32,
    /// `nfs4_stid.sc_client`.
    pub stid_client: u32,
    /// `nfs4_stid.sc_file`, a `nfs4_file`, or null.
    pub stid_file: u32,
    /// From a `nfs4_stid` to its `nfs4_ol_stateid`'s `st_stateowner`.
    pub ol_owner: u32,
    /// From a `nfs4_stid` to its `nfs4_ol_stateid`'s `st_access_bmap`, 1 byte.
    pub ol_access: u32,
    /// From a `nfs4_stid` to its `nfs4_ol_stateid`'s `st_deny_bmap`, 1 byte.
    pub ol_deny: u32,
    /// From a `nfs4_stid` to its `nfs4_delegation`'s `dl_type`, 4 bytes.
    pub deleg_type: u32,

    /// `nfs4_stateowner.so_client`.
    pub owner_client: u32,
    /// `nfs4_stateowner.so_owner.len`, 4 bytes.
    pub owner_len: u32,
    /// `nfs4_stateowner.so_owner.data`, a pointer.
    pub owner_data: u32,

    /// `nfs4_file.fi_inode`.
    pub file_inode: u32,
    /// `nfs4_file.fi_fhandle.fh_size`, 4 bytes.
    pub file_fh_size: u32,
    /// The bytes of `nfs4_file.fi_fhandle`.
    pub file_fh_data: u32,

    /// `svc_rqst.rq_daddr`, a `sockaddr_storage`: the server address that a call came to.
    pub rqst_daddr: u32,
    /// `nfsd4_open.op_claim_type`, 4 bytes.
    pub open_claim: u32,
    /// `nfsd4_open.op_delegate_type`, 4 bytes.
    pub open_delegation: u32,
    /// `nfsd4_lock.lk_reclaim`, 4 bytes.
    pub lock_reclaim: u32,

    /// `task_struct.files`, a `struct files_struct *`.
    pub task_files: u32,
    /// `files_struct.fdt`, a `struct fdtable *`.
    pub files_fdt: u32,
    /// `fdtable.fd`, a pointer to an array of `struct file *`.
    pub fdt_fd: u32,
    /// `super_block.s_fs_info`: for nfsd's filesystem, the `struct net` of its server.
    pub sb_fs_info: u32,
}

/// What a ring-buffer record is, as in [`crate::record::kind`].
pub mod kind {
    /// A [`ClientRecord`](super::ClientRecord).
    pub const CLIENT: u32 = 6;
    /// A [`ConnectionRecord`](super::ConnectionRecord).
    pub const CONNECTION: u32 = 7;
    /// A [`StateRecord`](super::StateRecord).
    pub const STATE: u32 = 8;
    /// A [`RangeRecord`](super::RangeRecord).
    pub const RANGE: u32 = 9;
}

/// One `nfs4_client`, written when its `states` begin to be read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientRecord {
    /// [`kind::CLIENT`].
    pub kind: u32,
    /// The minor version: 0, 1 or 2.
    pub minor: u32,
    /// Address of the `nfs4_client`.
    pub client: u64,
    /// `cl_flags`.
    pub flags: u64,
    /// `cl_boot` and `cl_id`.
    pub id: [u32; 2],
    /// Inode number of the network namespace.
    pub netns: u32,
    /// Length of the name; `name` holds its first bytes.
    pub name_len: u32,
    /// Where the client introduced itself from.
    pub address: Addr,
    /// The server address that an NFSv4.0 client used; zeros if unknown.
    pub vip: Addr,
    /// The owner string that the client chose (`cl_name`), not NUL-terminated.
    pub name: [u8; OWNER_MAX],
}

/// One connection of a client, written after its [`ClientRecord`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionRecord {
    /// [`kind::CONNECTION`].
    pub kind: u32,
    /// Always 0: keeps the struct without padding.
    pub pad: u32,
    /// Address of the `nfs4_client`, as in [`ClientRecord::client`].
    pub client: u64,
    /// The server's address; zeros if it is neither IPv4 nor IPv6.
    pub vip: Addr,
    /// The client's address.
    pub peer: Addr,
}

/// One `nfs4_stid`, written when it has been shown.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateRecord {
    /// [`kind::STATE`].
    pub kind: u32,
    /// `sc_type`. Before 6.9 it also says what `status` says from 6.9
    /// ([`StateLayout::stid_status`]).
    pub class: u32,
    /// `sc_status`; 0 before 6.9, which has no such field.
    pub status: u32,
    /// `st_access_bmap`: bit 1 is set for read, bit 2 for write, bit 3 for both.
    pub access: u32,
    /// `st_deny_bmap`; see `access`.
    pub deny: u32,
    /// `dl_type` of a delegation; 0 for other states.
    pub delegation: u32,
    /// Address of the `nfs4_stid`.
    pub stid: u64,
    /// Address of the `nfs4_client`, as in [`ClientRecord::client`].
    pub client: u64,
    /// Generation, client id, and the state's own number. Each LOCK, LOCKU, OPEN and
    /// `OPEN_DOWNGRADE` raises the generation.
    pub id: [u8; 16],
    /// Address of the `nfs4_stateowner`, 0 for a delegation or layout.
    pub owner: u64,
    /// Address of the `nfs4_file`, or 0.
    pub file: u64,
    /// Inode number; 0 if the state has no file or its inode could not be read.
    pub ino: u64,
    /// The device of `ino`, in the kernel's own `dev_t` encoding: major << 20 | minor.
    pub dev: u32,
    /// Length of the file handle in bytes; 0 if the state has no file.
    pub fh_len: u32,
    /// Length of the owner's name; `owner_name` holds its first bytes. 0 without an owner.
    pub owner_len: u32,
    /// Always 0: keeps the struct without padding.
    pub pad: u32,
    /// The file handle: its first `fh_len` bytes.
    pub fh: [u8; FH_MAX],
    /// The owner as the client named it (`so_owner`), not NUL-terminated.
    pub owner_name: [u8; OWNER_MAX],
}

/// One lock or lease that nfsd holds for a client, or a lock that a client waits for, written
/// while `/proc/locks` is read.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RangeRecord {
    /// [`kind::RANGE`].
    pub kind: u32,
    /// `F_RDLCK` 0 or `F_WRLCK` 1.
    pub mode: u32,
    /// Address of the `file_lock`: which lock it is, within one pass.
    pub fl: u64,
    /// Address of a lock's `nfs4_stateowner`, or of a lease's `nfs4_stid`.
    pub holder: u64,
    /// Address of the `nfs4_client`, as in [`ClientRecord::client`].
    pub client: u64,
    /// Inode number.
    pub ino: u64,
    /// First byte; 0 for a lease.
    pub start: u64,
    /// Last byte; `i64::MAX` means to the end of the file.
    pub end: u64,
    /// The device of `ino`, in the kernel's own `dev_t` encoding: major << 20 | minor.
    pub dev: u32,
    /// Inode number of the client's network namespace.
    pub netns: u32,
    /// Not 0: a lease.
    pub lease: u32,
    /// Not 0: a blocked request in the kernel's queue.
    pub waits: u32,
}

crate::plain!(
    StateLayout: 24 + 4 * 44,
    ClientRecord: 72 + OWNER_MAX,
    ConnectionRecord: 48,
    StateRecord: 96 + FH_MAX + OWNER_MAX,
    RangeRecord: 72,
);
