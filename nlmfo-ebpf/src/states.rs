//! The state snapshot: what nfsd holds for its NFSv4 clients.
//!
//! While our own thread reads `clients/N/states`, `client_states` writes the client and its
//! connections, and `state_shown` writes each of its states, under the client's lock. The
//! ranges come from a read of `/proc/locks` (`lock_list::show`), which does not show states
//! without ranges.

use aya_ebpf::helpers::generated::bpf_loop;
use aya_ebpf::macros::{kprobe, map, raw_tracepoint};
use aya_ebpf::maps::PerCpuArray;
use aya_ebpf::programs::{ProbeContext, RawTracePointContext};
use core::ffi::c_void;
use nlmfo_common::Addr;
use nlmfo_common::record::{Control, FH_MAX};
use nlmfo_common::state::{
    ClientRecord, ConnectionRecord, OWNER_MAX, RangeRecord, StateRecord, kind,
};

use crate::host::fill;
use crate::kernel::{FileLock, UNKNOWN_FAMILY, layout, pointer, read, read_bytes, sockaddr};
use crate::snapshot::{control, current_task, emit, emit_listed};

/// `SC_TYPE_OPEN`, `SC_TYPE_LOCK` and `SC_TYPE_DELEG` of fs/nfsd/state.h; before 6.9
/// `NFS4_OPEN_STID` and so on, of the same values.
const OPEN: u32 = 1;
const LOCK: u32 = 2;
const DELEGATION: u32 = 4;

/// The walk ends after this many sessions and connections of one client; a few dozen are usual.
const MAX_STEPS: u32 = 1 << 16;

const CONTINUE: i64 = 0;
const STOP: i64 = 1;

/// Writes the client whose states are about to be read. Called for each page, and also for a
/// client without states.
// kernel: void *states_start(struct seq_file *s, loff_t *pos)
// seen: 6.1 6.12 7.3
// context: process, no lock held
#[kprobe]
pub fn client_states(ctx: ProbeContext) -> u32 {
    // SAFETY: nothing but a comparison unless it is the reader's.
    let Some(control) = (unsafe { control() }) else {
        return 0;
    };
    if control.reader != current_task() {
        return 0;
    }
    let (Some(seq), Some(pos)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(1)) else {
        return 0;
    };
    if read::<u64>(pos, 0) != Ok(0) {
        return 0;
    }
    if show_client(seq) != Ok(true) {
        control.lost += 1;
    }
    0
}

/// False if the ring is full, or the client's lists changed during the walk.
#[inline(always)]
fn show_client(seq: u64) -> Result<bool, i32> {
    let client = pointer(seq, layout!(states.seq_private))?;
    let written = emit(|record: *mut ClientRecord| {
        let net = pointer(client, layout!(states.client_net))?;
        fill!(record, {
            kind: kind::CLIENT,
            minor: read(client, layout!(states.client_minor))?,
            client: client,
            flags: read(client, layout!(states.client_flags))?,
            id: read(client, layout!(states.client_id))?,
            netns: read(net, layout!(net_inum))?,
            name_len: 0,
            address: address(client, layout!(states.client_addr))?,
            vip: address(client, layout!(states.client_cb_saddr))?,
            name: [0; OWNER_MAX],
        });
        // SAFETY: as in `fill!`.
        let name = unsafe { &raw mut (*record).name };
        // The length comes last: 6.1's verifier forgets a bound across a call.
        let data = pointer(client, layout!(states.client_name_data))?;
        let name_len: u32 = read(client, layout!(states.client_name_len))?;
        fill!(record, { name_len: name_len });
        read_bytes(name, name_len, data)
    })?;
    let state = CONNECTIONS.get_ptr_mut(0).ok_or(-1)?;
    // SAFETY: this CPU's entry; only the one reader walks (`Control::reader`).
    let state = unsafe { &mut *state };
    let sessions = client + layout!(states.client_sessions) as u64;
    *state = Connections {
        client,
        sessions,
        session: pointer(sessions, 0)?,
        list: 0,
        connection: 0,
        done: 0,
    };
    // SAFETY: the callback has the helper's signature and needs no context.
    unsafe {
        bpf_loop(
            MAX_STEPS,
            connection_step as *mut c_void,
            core::ptr::null_mut(),
            0,
        );
    }
    Ok(written && state.done != 0)
}

/// An address, or zeros if it is neither IPv4 nor IPv6.
#[inline(always)]
fn address(base: u64, offset: u32) -> Result<Addr, i32> {
    match sockaddr(base + offset as u64) {
        Err(UNKNOWN_FAMILY) => Ok(Addr([0; 16])),
        other => other,
    }
}

/// The position of the walk of a client's sessions and their connections. In a map for the same
/// reason as `Walk` of `snapshot`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Connections {
    client: u64,
    /// Head and next entry of the client's sessions.
    sessions: u64,
    session: u64,
    /// Head and next entry of a session's connections; 0 between sessions.
    list: u64,
    connection: u64,
    /// Not 0 if all were seen.
    done: u64,
}

#[map]
static CONNECTIONS: PerCpuArray<Connections> = PerCpuArray::with_max_entries(1, 0);

extern "C" fn connection_step(_index: u64, _context: *mut c_void) -> i64 {
    let Some(state) = CONNECTIONS.get_ptr_mut(0) else {
        return STOP;
    };
    // SAFETY: as in `show_client`.
    let state = unsafe { &mut *state };
    walk_connection(state).unwrap_or(STOP)
}

#[inline(always)]
fn walk_connection(state: &mut Connections) -> Result<i64, i32> {
    if state.list == 0 {
        if state.session == state.sessions {
            state.done = 1;
            return Ok(STOP);
        }
        let next = pointer(state.session, 0)?;
        if pointer(next, 8)? != state.session {
            return Ok(STOP);
        }
        state.list = state.session - layout!(states.session_list) as u64
            + layout!(states.session_conns) as u64;
        state.connection = pointer(state.list, 0)?;
        state.session = next;
        return Ok(CONTINUE);
    }
    if state.connection == state.list {
        state.list = 0;
        return Ok(CONTINUE);
    }
    let next = pointer(state.connection, 0)?;
    if pointer(next, 8)? != state.connection {
        return Ok(STOP);
    }
    let conn = state.connection - layout!(states.conn_list) as u64;
    let xprt = pointer(conn, layout!(states.conn_xprt))?;
    let client = state.client;
    let room = emit(|record: *mut ConnectionRecord| {
        fill!(record, {
            kind: kind::CONNECTION,
            pad: 0,
            client: client,
            vip: address(xprt, layout!(states.xprt_local))?,
            peer: address(xprt, layout!(states.xprt_remote))?,
        });
        Ok(())
    })?;
    state.connection = next;
    Ok(if room { CONTINUE } else { STOP })
}

/// Writes each state that was shown. `states_show` shares its name with a function of the core
/// kernel; `states_next` is called once for each state that was shown, also for one that has
/// no line.
// kernel: void *states_next(struct seq_file *s, void *v, loff_t *pos)
// seen: 6.1 6.12 7.3
// context: process, under the client's cl_lock
#[kprobe]
pub fn state_shown(ctx: ProbeContext) -> u32 {
    // SAFETY: nothing but a comparison unless it is the reader's.
    let Some(control) = (unsafe { control() }) else {
        return 0;
    };
    if control.reader != current_task() {
        return 0;
    }
    control.shown += 1;
    if let Some(stid) = ctx.arg::<u64>(1)
        && show_state(stid) != Ok(true)
    {
        control.lost += 1;
    }
    0
}

#[inline(always)]
fn show_state(stid: u64) -> Result<bool, i32> {
    emit(|record: *mut StateRecord| {
        let class = read::<u8>(stid, layout!(states.stid_type))? as u32;
        let status = match layout!(states.stid_status) {
            0 => 0,
            at => read::<u16>(stid, at)? as u32,
        };
        fill!(record, {
            kind: kind::STATE,
            class: class,
            status: status,
            access: 0,
            deny: 0,
            delegation: 0,
            stid: stid,
            client: pointer(stid, layout!(states.stid_client))?,
            id: read(stid, layout!(states.stid_id))?,
            owner: 0,
            file: pointer(stid, layout!(states.stid_file))?,
            ino: 0,
            dev: 0,
            fh_len: 0,
            owner_len: 0,
            pad: 0,
            fh: [0; FH_MAX],
            owner_name: [0; OWNER_MAX],
        });
        if class == OPEN || class == LOCK {
            show_owner(stid, record)?;
        }
        if class == DELEGATION {
            fill!(record, { delegation: read(stid, layout!(states.deleg_type))? });
        }
        show_file(record)
    })
}

#[inline(always)]
fn show_owner(stid: u64, record: *mut StateRecord) -> Result<(), i32> {
    let owner = pointer(stid, layout!(states.ol_owner))?;
    fill!(record, {
        access: read::<u8>(stid, layout!(states.ol_access))? as u32,
        deny: read::<u8>(stid, layout!(states.ol_deny))? as u32,
        owner: owner,
    });
    // SAFETY: as in `fill!`.
    let name = unsafe { &raw mut (*record).owner_name };
    // The length last, as in `show_client`.
    let data = pointer(owner, layout!(states.owner_data))?;
    let owner_len: u32 = read(owner, layout!(states.owner_len))?;
    fill!(record, { owner_len: owner_len });
    read_bytes(name, owner_len, data)
}

#[inline(always)]
fn show_file(record: *mut StateRecord) -> Result<(), i32> {
    // SAFETY: as in `fill!`; it was written.
    let file = unsafe { (&raw const (*record).file).read() };
    if file == 0 {
        return Ok(());
    }
    let fh_len: u32 = read(file, layout!(states.file_fh_size))?;
    fill!(record, { fh_len: fh_len });
    // SAFETY: as in `fill!`.
    let fh = unsafe { &raw mut (*record).fh };
    read_bytes(fh, fh_len, file + layout!(states.file_fh_data) as u64)?;
    // No reference is held on the inode of a file that nobody has open.
    let inode = pointer(file, layout!(states.file_inode))?;
    if inode != 0
        && let Ok((dev, ino)) = inode_of(inode)
    {
        fill!(record, { dev: dev, ino: ino });
    }
    Ok(())
}

/// Device and number.
#[inline(always)]
fn inode_of(inode: u64) -> Result<(u32, u64), i32> {
    let sb = pointer(inode, layout!(inode_sb))?;
    Ok((read(sb, layout!(sb_dev))?, read(inode, layout!(inode_ino))?))
}

/// Writes the lock or lease if it is one of nfsd's. False if the ring is full.
#[inline(always)]
pub fn show_range(control: &mut Control, lock: &FileLock) -> Result<bool, i32> {
    // 0 if nfsd's layout is unknown; local locks have 0 too.
    if layout!(states.posix_ops) == 0 {
        return Ok(true);
    }
    let (lease_ops, layout_ops) = (layout!(states.lease_ops), layout!(states.layout_ops));
    let is_lock = lock.lmops() == layout!(states.posix_ops);
    let lease = lock.lease_lmops();
    if !is_lock && lease != lease_ops && (layout_ops == 0 || lease != layout_ops) {
        return Ok(true);
    }
    let (holder, client) = match is_lock {
        true => lock_owner(lock)?,
        // Both start with an nfs4_stid.
        false => {
            let stid = lock.owner();
            (stid, pointer(stid, layout!(states.stid_client))?)
        }
    };
    let inode = pointer(lock.file(), layout!(file_inode))?;
    write_range(
        control,
        lock,
        Holder {
            holder,
            client,
            inode,
            is_lock,
            waits: false,
        },
    )
}

/// The `nfs4_stateowner` of one of nfsd's locks or requests, and its `nfs4_client`.
#[inline(always)]
fn lock_owner(lock: &FileLock) -> Result<(u64, u64), i32> {
    let owner = lock.owner() + layout!(states.lockowner_owner) as u64;
    Ok((owner, pointer(owner, layout!(states.owner_client))?))
}

/// Writes the request if it is one of nfsd's. It waits behind a lock on `inode`. False if the
/// ring is full.
#[inline(always)]
pub fn show_waiter(control: &mut Control, lock: &FileLock, inode: u64) -> Result<bool, i32> {
    if layout!(states.posix_ops) == 0 || lock.lmops() != layout!(states.posix_ops) {
        return Ok(true);
    }
    let (holder, client) = lock_owner(lock)?;
    write_range(
        control,
        lock,
        Holder {
            holder,
            client,
            inode,
            is_lock: true,
            waits: true,
        },
    )
}

/// Who has a lock or lease, or made a request, and for which file.
struct Holder {
    holder: u64,
    client: u64,
    inode: u64,
    is_lock: bool,
    waits: bool,
}

#[inline(always)]
fn write_range(control: &mut Control, lock: &FileLock, of: Holder) -> Result<bool, i32> {
    let Holder {
        holder,
        client,
        inode,
        is_lock,
        waits,
    } = of;
    let net = pointer(client, layout!(states.client_net))?;
    let (dev, ino) = inode_of(inode)?;
    emit_listed(control, |record: *mut RangeRecord| {
        fill!(record, {
            kind: kind::RANGE,
            mode: lock.mode(),
            fl: lock.base(),
            holder: holder,
            client: client,
            ino: ino,
            start: if is_lock { lock.start() } else { 0 },
            end: if is_lock { lock.end() } else { i64::MAX as u64 },
            dev: dev,
            netns: read(net, layout!(net_inum))?,
            lease: !is_lock as u32,
            waits: waits as u32,
        });
        Ok(())
    })
}

/// Stores in `Control::netns` the network namespace of the server that the file descriptor
/// `args[0]`, on nfsd's filesystem, shows.
// hook: none: the tool runs it (BPF_PROG_TEST_RUN)
// seen: 6.1 6.12 7.3
// context: the tool's own thread, no lock held
#[raw_tracepoint]
pub fn nfsd_netns(ctx: RawTracePointContext) -> i32 {
    // SAFETY: this program is run by the reader.
    if let Some(control) = unsafe { control() } {
        control.netns = netns_of(ctx.arg(0)).unwrap_or(0) as u64;
    }
    0
}

#[inline(always)]
fn netns_of(fd: u64) -> Result<u32, i32> {
    let files = pointer(current_task(), layout!(states.task_files))?;
    let table = pointer(
        pointer(files, layout!(states.files_fdt))?,
        layout!(states.fdt_fd),
    )?;
    let inode = pointer(pointer(table + 8 * fd, 0)?, layout!(file_inode))?;
    let sb = pointer(inode, layout!(inode_sb))?;
    read(pointer(sb, layout!(states.sb_fs_info))?, layout!(net_inum))
}
