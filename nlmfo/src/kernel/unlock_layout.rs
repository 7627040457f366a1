//! Fills the programs' [`UnlockLayout`] from the running kernel.

use nlmfo_common::unlock::UnlockLayout;

use super::btf::KernelBtf;
use super::layout::{Fields, LayoutError};

/// Newer kernels decode calls by code made from the protocol's description (seen on 7.3, fs/lockd/
/// svc4proc.c). There the file handle stays in the received call.
const MADE: &str = "nlm4_unlockargs_wrapper.xdrgen.alock.fh.data";

const WHY: &str = "what clients give up in grace";

/// `release` is for the errors.
pub fn fill(btf: &KernelBtf, release: &str) -> Result<UnlockLayout, LayoutError> {
    let of = |module| Fields {
        btf: btf.of(module),
        release,
    };
    let (lockd, sunrpc) = (of("lockd"), of("sunrpc"));
    let made = lockd.field(MADE, Some(8), WHY);
    let fh_is_pointer = u32::from(made.is_ok());
    let size = lockd.field(
        "nlm4_unlockargs_wrapper.xdrgen.alock.fh.len | nlm_args.lock.fh.size",
        None,
        WHY,
    )?;
    Ok(UnlockLayout {
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
