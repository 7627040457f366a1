//! Fills the programs' [`StateLayout`] from the running kernel: where nfsd keeps its
//! NFSv4 state.

use nlmfo_common::state::StateLayout;

use super::btf::{self, KernelBtf};
use super::layout::{Fields, LayoutError, MODULES};
use super::symbols::Symbols;

/// The objects of nfsd that the programs compare with.
pub const OBJECTS: [&str; 3] = [LOCKS, LEASES, LAYOUTS];

const LOCKS: &str = "nfsd_posix_mng_ops";
const LEASES: &str = "nfsd_lease_mng_ops";
/// Only an nfsd built with pNFS has it.
const LAYOUTS: &str = "nfsd4_layouts_lm_ops";

/// The layout of the running kernel; nfsd must be loaded.
pub fn load() -> Result<StateLayout, LayoutError> {
    let symbols = Symbols::load(OBJECTS)?;
    symbols.in_module(LOCKS, "nfsd")?;
    let btf = KernelBtf::load(&MODULES)?;
    let release = super::release().map_err(LayoutError::Release)?;
    fill(&btf, &symbols, &release)
}

/// `symbols` must have been asked for [`OBJECTS`]; `release` is for the errors.
pub fn fill(btf: &KernelBtf, symbols: &Symbols, release: &str) -> Result<StateLayout, LayoutError> {
    let locks = symbols.in_module(LOCKS, "nfsd")?;
    if locks.module.is_some() && !btf.has_module("nfsd") {
        return Err(LayoutError::NoModuleBtf {
            module: "nfsd",
            folder: btf::FOLDER,
            release: release.to_owned(),
        });
    }
    let of = |btf| Fields { btf, release };
    let nfsd = of(btf.of("nfsd"));
    let sunrpc = of(btf.of("sunrpc"));
    let kernel = of(btf.vmlinux());
    let within = |outer, inner, bytes| -> Result<u32, LayoutError> {
        let state = nfsd.field(outer, None, STATE)?;
        // The struct begins with its nfs4_stid on every kernel seen.
        Ok(nfsd.offset(inner, bytes, STATE)?.wrapping_sub(state.offset))
    };
    Ok(StateLayout {
        posix_ops: locks.address,
        lease_ops: symbols.in_module(LEASES, "nfsd")?.address,
        layout_ops: (symbols.in_module(LAYOUTS, "nfsd")).map_or(0, |symbol| symbol.address),

        lease_lmops: nfsd.offset("file_lease.fl_lmops | file_lock.fl_lmops", 8, RANGE)?,
        lockowner_owner: nfsd.field("nfs4_lockowner.lo_owner", None, RANGE)?.offset,

        blocked_requests: kernel.offset(
            "file_lock.fl_blocked_requests | file_lock.c.flc_blocked_requests",
            16,
            WAITS,
        )?,
        blocked_member: kernel.offset(
            "file_lock.fl_blocked_member | file_lock.c.flc_blocked_member",
            16,
            WAITS,
        )?,
        blocker: kernel.offset("file_lock.fl_blocker | file_lock.c.flc_blocker", 8, WAITS)?,

        seq_private: kernel.offset("seq_file.private", 8, CLIENT)?,

        client_name_len: nfsd.offset("nfs4_client.cl_name.len", 4, CLIENT)?,
        client_name_data: nfsd.offset("nfs4_client.cl_name.data", 8, CLIENT)?,
        client_addr: nfsd.offset("nfs4_client.cl_addr", 128, CLIENT)?,
        client_id: nfsd.offset("nfs4_client.cl_clientid", 8, CLIENT)?,
        client_minor: nfsd.offset("nfs4_client.cl_minorversion", 4, CLIENT)?,
        client_flags: nfsd.offset("nfs4_client.cl_flags", 8, CLIENT)?,
        client_cb_saddr: nfsd.offset("nfs4_client.cl_cb_conn.cb_saddr", 128, VIP)?,
        client_sessions: nfsd.offset("nfs4_client.cl_sessions", 16, VIP)?,
        client_net: nfsd.offset("nfs4_client.net", 8, CLIENT)?,
        session_list: nfsd.offset("nfsd4_session.se_perclnt", 16, VIP)?,
        session_conns: nfsd.offset("nfsd4_session.se_conns", 16, VIP)?,
        conn_list: nfsd.offset("nfsd4_conn.cn_persession", 16, VIP)?,
        conn_xprt: nfsd.offset("nfsd4_conn.cn_xprt", 8, VIP)?,
        xprt_local: sunrpc.offset("svc_xprt.xpt_local", 128, VIP)?,
        xprt_remote: sunrpc.offset("svc_xprt.xpt_remote", 128, CLIENT)?,

        stid_type: nfsd.field("nfs4_stid.sc_type", None, STATE)?.offset,
        stid_status: (nfsd.field("nfs4_stid.sc_status", Some(2), STATE))
            .map_or(0, |field| field.offset),
        stid_id: nfsd.offset("nfs4_stid.sc_stateid", 16, STATE)?,
        stid_client: nfsd.offset("nfs4_stid.sc_client", 8, STATE)?,
        stid_file: nfsd.offset("nfs4_stid.sc_file", 8, STATE)?,
        ol_owner: within(
            "nfs4_ol_stateid.st_stid",
            "nfs4_ol_stateid.st_stateowner",
            8,
        )?,
        ol_access: within(
            "nfs4_ol_stateid.st_stid",
            "nfs4_ol_stateid.st_access_bmap",
            1,
        )?,
        ol_deny: within("nfs4_ol_stateid.st_stid", "nfs4_ol_stateid.st_deny_bmap", 1)?,
        deleg_type: within("nfs4_delegation.dl_stid", "nfs4_delegation.dl_type", 4)?,

        owner_client: nfsd.offset("nfs4_stateowner.so_client", 8, STATE)?,
        owner_len: nfsd.offset("nfs4_stateowner.so_owner.len", 4, STATE)?,
        owner_data: nfsd.offset("nfs4_stateowner.so_owner.data", 8, STATE)?,

        file_inode: nfsd.offset("nfs4_file.fi_inode", 8, FILE)?,
        file_fh_size: nfsd.offset("nfs4_file.fi_fhandle.fh_size", 4, FILE)?,
        file_fh_data: nfsd
            .field("nfs4_file.fi_fhandle.fh_raw", None, FILE)?
            .offset,

        rqst_daddr: nfsd.offset("svc_rqst.rq_daddr", 128, COUNT)?,
        open_claim: nfsd.offset("nfsd4_open.op_claim_type", 4, COUNT)?,
        open_delegation: nfsd.offset("nfsd4_open.op_delegate_type", 4, COUNT)?,
        lock_reclaim: nfsd.offset("nfsd4_lock.lk_reclaim", 4, COUNT)?,

        task_files: kernel.offset("task_struct.files", 8, SERVER)?,
        files_fdt: kernel.offset("files_struct.fdt", 8, SERVER)?,
        fdt_fd: kernel.offset("fdtable.fd", 8, SERVER)?,
        sb_fs_info: kernel.offset("super_block.s_fs_info", 8, SERVER)?,
    })
}

const CLIENT: &str = "an NFSv4 client";
const VIP: &str = "the VIPs of an NFSv4 client";
const STATE: &str = "an NFSv4 client's state";
const RANGE: &str = "an NFSv4 lock";
const WAITS: &str = "NFSv4 requests that wait";
const FILE: &str = "the file of an NFSv4 state";
const COUNT: &str = "counting NFSv4 calls";
const SERVER: &str = "whose server nfsd's filesystem shows";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::Btf;

    #[test]
    fn an_nfsd_without_types_is_told_from_one_that_is_not_loaded() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("vmlinux"), Btf::empty()).unwrap();
        let btf = KernelBtf::load_from(folder.path(), &MODULES).unwrap();
        let error = |kallsyms: &str| {
            let symbols = Symbols::parse(kallsyms.as_bytes(), OBJECTS).unwrap();
            fill(&btf, &symbols, "9.9.9-test").unwrap_err().to_string()
        };
        let absent = error("ffffffff81000000 T _text\n");
        assert!(absent.contains("modprobe nfsd"), "{absent}");
        let bare = error("ffffffffc0a62400 r nfsd_posix_mng_ops\t[nfsd]\n");
        assert!(
            bare.contains("no type information of its module nfsd"),
            "{bare}"
        );
    }
}
