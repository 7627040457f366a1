//! Offsets of the kernel's fields. The loader reads each from the running kernel's BTF and hands
//! them to the programs as one read-only global: none is fixed for a kernel version.

use crate::state::StateLayout;
use crate::unlock::UnlockLayout;

/// Maximum bytes of a `file_lock` that the programs copy; 192 are enough on 6.1 to 7.3.
pub const FL_SPAN_MAX: usize = 256;

/// Byte offsets of the fields that the programs read, each from the start of
/// the struct that the name begins with, and the addresses of the kernel's
/// objects that they compare with or walk.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Address of lockd's `nlmsvc_lock_operations`: a lock with these
    /// `fl_lmops` is one of lockd's.
    pub nlmsvc_lock_operations: u64,
    /// Address of lockd's hash table `nlm_files`.
    pub nlm_files: u64,
    /// nfsd's fields, for NFSv4.
    pub states: StateLayout,
    /// The kernel's lists of all locks; zeros if they are not known.
    pub lock_lists: LockLists,
    /// The arguments of an UNLOCK.
    pub unlocks: UnlockLayout,

    /// `file_lock.fl_link`, from 6.9 `file_lock.c.flc_link`: what `/proc/locks`
    /// hands to `locks_show`.
    pub fl_link: u32,
    /// `fl_owner`: for lockd's locks a `struct nlm_lockowner *`.
    pub fl_owner: u32,
    /// `fl_list`, from 6.9 `flc_list`: the `list_head` in the inode's `flc_posix`.
    pub fl_list: u32,
    /// `fl_type`: `F_RDLCK` 0 or `F_WRLCK` 1.
    pub fl_type: u32,
    /// `fl_file`, a `struct file *`.
    pub fl_file: u32,
    /// `fl_start`, 8 bytes.
    pub fl_start: u32,
    /// `fl_end`, 8 bytes, inclusive; `OFFSET_MAX` means end of file.
    pub fl_end: u32,
    /// `fl_lmops`.
    pub fl_lmops: u32,
    /// Bytes from the start of `struct file_lock` that hold every field above.
    pub fl_span: u32,

    /// `file.f_inode`.
    pub file_inode: u32,
    /// `inode.i_ino`, 8 bytes.
    pub inode_ino: u32,
    /// `inode.i_sb`.
    pub inode_sb: u32,
    /// `inode.i_flctx`, a `struct file_lock_context *`, or null.
    pub inode_flctx: u32,
    /// `file_lock_context.flc_posix`, a `list_head` of `fl_list`.
    pub flctx_posix: u32,
    /// `super_block.s_dev`, 4 bytes, the kernel's own encoding (20 bits of minor).
    pub sb_dev: u32,

    /// `nlm_lockowner.host`.
    pub lockowner_host: u32,
    /// `nlm_lockowner.pid`: what NLM calls svid, 4 bytes.
    pub lockowner_svid: u32,

    /// `nlm_host.h_addr`, a `sockaddr_storage`: the client.
    pub host_addr: u32,
    /// `nlm_host.h_srcaddr`, a `sockaddr_storage`: the server address, our VIP.
    pub host_srcaddr: u32,
    /// `nlm_host.h_version`, 4 bytes.
    pub host_version: u32,
    /// `nlm_host.h_proto`, 2 bytes: `IPPROTO_TCP` or `IPPROTO_UDP`.
    pub host_proto: u32,
    /// `nlm_host.h_name`, a `char *`: the name that the client calls itself.
    pub host_name: u32,
    /// `nlm_host.net`, a `struct net *`.
    pub host_net: u32,
    /// `nlm_host.h_expires`, 8 bytes: when lockd may forget a host that is idle. Each call of
    /// the client puts it off (`nlm_get_host`, fs/lockd/host.c, 6.1 to 7.3).
    pub host_expires: u32,
    /// `nlm_host.h_nsmhandle`, a `struct nsm_handle *`, or null.
    pub host_nsmhandle: u32,
    /// `nsm_handle.sm_name`, a `char *`: the name that statd monitors.
    pub nsm_name: u32,
    /// `nsm_handle.sm_priv`, 16 bytes: the cookie that statd hands back.
    pub nsm_priv: u32,
    /// `net.ns.inum`, 4 bytes: the number in `/proc/PID/ns/net`.
    pub net_inum: u32,

    /// `nlm_file.f_list`, the `hlist_node` in its bucket of `nlm_files`.
    pub nlm_file_list: u32,
    /// `nlm_file.f_handle.size`, 2 bytes.
    pub nlm_file_fh_size: u32,
    /// `nlm_file.f_handle.data`.
    pub nlm_file_fh_data: u32,
    /// `nlm_file.f_file`, two `struct file *`: for reading, for writing.
    pub nlm_file_file: u32,
    /// `nlm_file.f_shares`: head of a singly linked list.
    pub nlm_file_shares: u32,
    /// `nlm_file.f_blocks`: a `list_head` of `nlm_block.b_flist`.
    pub nlm_file_blocks: u32,

    /// `nlm_block.b_list`: in lockd's list of requests to see to, or alone.
    pub block_list: u32,
    /// `nlm_block.b_flist`.
    pub block_flist: u32,
    /// `nlm_block.b_host`.
    pub block_host: u32,
    /// `nlm_block.b_call`, a `struct nlm_rqst *`.
    pub block_call: u32,
    /// `nlm_block.b_granted`, 1 byte: the grant is on its way to the client.
    pub block_granted: u32,
    /// `nlm_rqst.a_host`.
    pub rqst_host: u32,
    /// `nlm_rqst.a_args.cookie.data`; lockd numbers its grants in the first 4 bytes.
    pub rqst_cookie: u32,
    /// `nlm_rqst.a_args.lock.svid`, 4 bytes.
    pub rqst_lock_svid: u32,
    /// `nlm_rqst.a_args.lock.fl`, a `struct file_lock`.
    pub rqst_lock_fl: u32,
    /// `fl` in the type of `nlm_rqst.a_args.lock` (`nlm_lock`, from 7.2
    /// `lockd_lock`), which `nlmsvc_unlock` and its kin take.
    pub lock_fl: u32,

    /// `nlm_share.s_next` (the type that `nlm_file.f_shares` points to).
    pub share_next: u32,
    /// `nlm_share.s_host`.
    pub share_host: u32,
    /// `nlm_share.s_owner.len`, 4 bytes.
    pub share_owner_len: u32,
    /// `nlm_share.s_owner.data`, a pointer.
    pub share_owner_data: u32,
    /// `nlm_share.s_access`, 4 bytes.
    pub share_access: u32,
    /// `nlm_share.s_mode`, 4 bytes.
    pub share_mode: u32,

    /// Buckets of `nlm_files`, from the array's BTF type.
    pub nlm_files_buckets: u32,
    /// Keeps the struct without padding.
    pub pad: u32,
}

/// `file_lock_list` of fs/locks.c: one list for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LockLists {
    /// Address of the per-CPU variable, to which a CPU's offset is added.
    pub variable: u64,
    /// Address of `__per_cpu_offset`, an array of 8 bytes for each CPU.
    pub offsets: u64,
    /// `file_lock_list_struct.hlist`.
    pub head: u32,
    /// `fl_link_cpu`, 4 bytes: the CPU whose list a lock is in.
    pub link_cpu: u32,
    /// How many CPUs there may be, numbered from 0; 0 if the lists are not known.
    pub cpus: u32,
    /// Always 0: keeps the struct without padding.
    pub pad: u32,
}

impl Layout {
    /// Every field 0: what the programs are built with, and the loader replaces.
    // SAFETY: integers only; all-zero bytes are a value of each.
    pub const UNSET: Self = unsafe { core::mem::zeroed() };
}

crate::plain!(Layout: 2 * 8 + size_of::<StateLayout>() + size_of::<LockLists>() + size_of::<UnlockLayout>() + 52 * 4);
