//! Fills the [`SocketsLayout`] from the running kernel, as [`super::layout`] does for
//! the programs that observe.

use nlmfo_common::sockets::SocketsLayout;

use super::btf::KernelBtf;
use super::layout::{Fields, LayoutError, MODULES};
use super::symbols::Symbols;

/// lockd's one `struct svc_serv *`, null while it serves nowhere (fs/lockd/svc.c, 6.1
/// to 7.3).
pub const SERVICE: &str = "nlmsvc_serv";

/// The layout of the running kernel. lockd must be loaded.
pub fn load() -> Result<SocketsLayout, LayoutError> {
    let symbols = Symbols::load([SERVICE])?;
    // First, because its error names the remedy.
    symbols.in_module(SERVICE, "lockd")?;
    let btf = KernelBtf::load(&MODULES)?;
    let release = super::release().map_err(LayoutError::Release)?;
    fill(&btf, &symbols, &release)
}

/// `symbols` must have been asked for [`SERVICE`]; `release` is for the errors.
pub fn fill(
    btf: &KernelBtf,
    symbols: &Symbols,
    release: &str,
) -> Result<SocketsLayout, LayoutError> {
    let of = |btf| Fields { btf, release };
    let sunrpc = of(btf.of("sunrpc"));
    let kernel = of(btf.vmlinux());
    let purpose = "lockd's ports";
    let versions = "the NLM versions that lockd serves";
    // 6.12 made an array of it.
    let program = |alternatives, bytes| sunrpc.offset(alternatives, bytes, versions);
    Ok(SocketsLayout {
        nlmsvc_serv: symbols.in_module(SERVICE, "lockd")?.address,
        serv_permsocks: sunrpc.offset("svc_serv.sv_permsocks", 16, purpose)?,
        serv_program: program("svc_serv.sv_program | svc_serv.sv_programs", 8)?,
        program_number: program("svc_program.pg_prog", 4)?,
        program_versions: program("svc_program.pg_nvers", 4)?,
        program_table: program("svc_program.pg_vers", 8)?,
        xprt_list: sunrpc.offset("svc_xprt.xpt_list", 16, purpose)?,
        xprt_net: sunrpc.offset("svc_xprt.xpt_net", 8, purpose)?,
        sock_xprt: sunrpc.field("svc_sock.sk_xprt", None, purpose)?.offset,
        sock_sk: sunrpc.offset("svc_sock.sk_sk", 8, purpose)?,
        sk_num: kernel.offset("sock.__sk_common.skc_num", 2, purpose)?,
        sk_family: kernel.offset("sock.__sk_common.skc_family", 2, purpose)?,
        sk_protocol: kernel.offset("sock.sk_protocol", 2, purpose)?,
        task_nsproxy: kernel.offset("task_struct.nsproxy", 8, purpose)?,
        nsproxy_net: kernel.offset("nsproxy.net_ns", 8, purpose)?,
    })
}
