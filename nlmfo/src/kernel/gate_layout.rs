//! Fills the gate's [`GateLayout`] from the running kernel, as [`super::layout`]
//! does for the programs that observe.

use nlmfo_common::gate::GateLayout;

use super::btf::KernelBtf;
use super::layout::{self, Fields, LayoutError, OBJECTS};
use super::symbols::Symbols;

/// The modules whose types the gate and the audit read.
pub const MODULES: [&str; 3] = layout::MODULES;

/// grace.ko's number of its part of each network namespace (`fs/nfs_common/grace.c`,
/// 6.1 to 7.3).
pub const GRACE_NET_ID: &str = "grace_net_id";

/// The layout of the running kernel. lockd, and with it grace, must be loaded.
pub fn load() -> Result<GateLayout, LayoutError> {
    let symbols = Symbols::load(OBJECTS.into_iter().chain([GRACE_NET_ID]))?;
    // First, because its error names the remedy.
    symbols.in_module(GRACE_NET_ID, "grace")?;
    let btf = KernelBtf::load(&MODULES)?;
    let release = super::release().map_err(LayoutError::Release)?;
    fill(&btf, &symbols, &release)
}

/// `symbols` must have been asked for [`OBJECTS`] and [`GRACE_NET_ID`]; `release`
/// is for the errors.
pub fn fill(btf: &KernelBtf, symbols: &Symbols, release: &str) -> Result<GateLayout, LayoutError> {
    let of = |btf| Fields { btf, release };
    let lockd = of(btf.of("lockd"));
    let sunrpc = of(btf.of("sunrpc"));
    let kernel = of(btf.vmlinux());
    let grace = "the kernel's own grace";
    let answered = "whose call lockd answered";
    let received = "what reached lockd's sockets";

    let lock = lockd.field("nlm_rqst.a_args.lock", None, answered)?;
    let svid = lockd.field("nlm_rqst.a_args.lock.svid", Some(4), answered)?;
    Ok(GateLayout {
        common: layout::fill(btf, symbols, release)?,
        grace_net_id: symbols.in_module(GRACE_NET_ID, "grace")?.address,
        net_gen: kernel.offset("net.gen", 8, grace)?,
        // A flexible array member, which has no size.
        net_generic_ptr: kernel.field("net_generic.ptr", None, grace)?.offset,
        task_nsproxy: kernel.offset("task_struct.nsproxy", 8, grace)?,
        nsproxy_net: kernel.offset("nsproxy.net_ns", 8, grace)?,
        rqst_addr: sunrpc.offset("svc_rqst.rq_addr", 128, answered)?,
        rqst_xid: sunrpc.offset("svc_rqst.rq_xid", 4, answered)?,
        serv_name: sunrpc.offset("svc_serv.sv_name", 8, "following lockd's ports")?,
        lock_svid: svid.offset - lock.offset,
        sock_net: kernel.offset("sock_common.skc_net", 8, received)?,
        sock_backlog: kernel.offset("sock.sk_backlog.tail", 8, received)?,
        tcp_gap: kernel.offset("tcp_sock.out_of_order_queue", 8, received)?,
        tcp_cookies: kernel.offset("tcp_sock.rx_opt.ts_recent_stamp", 4, received)?,
    })
}
