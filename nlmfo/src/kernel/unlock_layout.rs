//! Fills the programs' [`UnlockLayout`] from the running kernel.

use nlmfo_common::unlock::{Unlock3Layout, Unlock4Layout, UnlockLayout};

use super::btf::KernelBtf;
use super::layout::{Fields, LayoutError};

/// Newer kernels decode calls by code made from the protocol's description (seen on 7.3, fs/lockd/
/// svc4proc.c). There the file handle stays in the received call.
const MADE: &str = "nlm4_unlockargs_wrapper.xdrgen.alock.fh.data";

const WHY: &str = "what clients give up in grace";

/// A part is all zeros if its offsets are not known.
pub fn fill(btf: &KernelBtf, release: &str) -> UnlockLayout {
    UnlockLayout {
        nfs3: nfs3(btf, release).unwrap_or_default(),
        nfs4: nfs4(btf, release).unwrap_or_default(),
    }
}

/// `release` is for the errors.
pub fn nfs4(btf: &KernelBtf, release: &str) -> Result<Unlock4Layout, LayoutError> {
    let nfsd = Fields {
        btf: btf.of("nfsd"),
        release,
    };
    Ok(Unlock4Layout {
        locku_stateid: nfsd.offset("nfsd4_locku.lu_stateid", 16, WHY)?,
        locku_start: nfsd.offset("nfsd4_locku.lu_offset", 8, WHY)?,
        locku_len: nfsd.offset("nfsd4_locku.lu_length", 8, WHY)?,
        close_stateid: nfsd.offset("nfsd4_close.cl_stateid", 16, WHY)?,
    })
}

/// `release` is for the errors.
pub fn nfs3(btf: &KernelBtf, release: &str) -> Result<Unlock3Layout, LayoutError> {
    let of = |btf| Fields { btf, release };
    let (lockd, sunrpc) = (of(btf.of("lockd")), of(btf.of("sunrpc")));
    let made = lockd.field(MADE, Some(8), WHY);
    let fh_is_pointer = u32::from(made.is_ok());
    let size = lockd.field(
        "nlm4_unlockargs_wrapper.xdrgen.alock.fh.len | nlm_args.lock.fh.size",
        None,
        WHY,
    )?;
    Ok(Unlock3Layout {
        rqst_argp: sunrpc.offset("svc_rqst.rq_argp", 8, WHY)?,
        rqst_addr: sunrpc.offset("svc_rqst.rq_addr", 128, WHY)?,
        rqst_daddr: sunrpc.offset("svc_rqst.rq_daddr", 128, WHY)?,
        svid: lockd.offset(
            "nlm4_unlockargs_wrapper.xdrgen.alock.svid | nlm_args.lock.svid",
            4,
            WHY,
        )?,
        start: lockd.offset(
            "nlm4_unlockargs_wrapper.xdrgen.alock.l_offset | nlm_args.lock.lock_start",
            8,
            WHY,
        )?,
        len: lockd.offset(
            "nlm4_unlockargs_wrapper.xdrgen.alock.l_len | nlm_args.lock.lock_len",
            8,
            WHY,
        )?,
        fh_size: size.offset,
        fh_size_bytes: size.size,
        fh: match made {
            Ok(made) => made.offset,
            Err(_) => lockd.field("nlm_args.lock.fh.data", None, WHY)?.offset,
        },
        fh_is_pointer,
    })
}
