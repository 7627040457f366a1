//! Every eBPF program before the verifier of the kernel that runs the tests:
//! seconds instead of a boot. The layout is made up, as that kernel may have no
//! lockd; the lab loads the programs with real ones, on the kernels that count.

use std::collections::BTreeMap;
use std::process::ExitCode;

use aya::programs::ProgramError;
use libtest_mimic::{Arguments, Completion, Trial};
use nlmfo::grace::gate;
use nlmfo::observe::lockd_ports;
use nlmfo::observe::programs::Programs;
use nlmfo_common::gate::GateLayout;
use nlmfo_common::layout::{Layout, LockLists};
use nlmfo_common::sockets::SocketsLayout;

/// Offsets like those of a kernel: in bounds, and no two alike.
fn layout() -> Layout {
    Layout {
        nlmsvc_lock_operations: 0xffff_ffff_c000_1000,
        nlm_files: 0xffff_ffff_c000_2000,
        nlm_files_buckets: 128,
        fl_link: 24,
        fl_list: 8,
        fl_owner: 72,
        fl_type: 84,
        fl_file: 120,
        fl_start: 128,
        fl_end: 136,
        fl_lmops: 152,
        lock_lists: LockLists {
            variable: 0xffff_ffff_8100_4000,
            offsets: 0xffff_ffff_8100_5000,
            head: 8,
            link_cpu: 104,
            cpus: 2,
            pad: 0,
        },
        fl_span: 160,
        lockowner_host: 24,
        lockowner_svid: 40,
        host_addr: 16,
        host_srcaddr: 152,
        host_name: 296,
        host_version: 304,
        host_proto: 308,
        host_net: 512,
        ..Layout::UNSET
    }
}

fn gate_layout() -> GateLayout {
    GateLayout {
        common: layout(),
        grace_net_id: 0xffff_ffff_c000_3000,
        net_gen: 600,
        net_generic_ptr: 0,
        task_nsproxy: 3000,
        nsproxy_net: 40,
        rqst_addr: 48,
        rqst_xid: 1040,
        serv_name: 64,
        lock_svid: 160,
        sock_net: 48,
        sock_backlog: 264,
        tcp_gap: 1400,
        tcp_cookies: 1500,
    }
}

fn sockets_layout() -> SocketsLayout {
    SocketsLayout {
        nlmsvc_serv: 0xffff_ffff_c000_4000,
        serv_permsocks: 72,
        program_table: 16,
        xprt_list: 24,
        sock_sk: 1024,
        task_nsproxy: 3000,
        nsproxy_net: 40,
        ..SocketsLayout::UNSET
    }
}

type Verdicts = BTreeMap<String, Result<(), ProgramError>>;

/// Of all objects; an error if this kernel lets us create no maps.
fn verdicts() -> Result<Verdicts, String> {
    let mut programs = Programs::load(&layout()).map_err(|error| error.to_string())?;
    let mut verdicts = programs.verify();
    verdicts.extend(gate::verify(&gate_layout()).map_err(|error| error.to_string())?);
    let sockets = lockd_ports::verify(&sockets_layout()).map_err(|error| error.to_string())?;
    verdicts.extend(sockets);
    Ok(verdicts)
}

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let verdicts = match verdicts() {
        Ok(verdicts) => verdicts,
        Err(error) => {
            let reason = format!("this kernel lets us create no maps: {error}");
            let unsupported = Trial::ignorable_test("verifier", move || {
                Ok(Completion::ignored_with(reason.clone()))
            });
            return libtest_mimic::run(&arguments, vec![unsupported]).exit_code();
        }
    };
    let trials = verdicts
        .into_iter()
        .map(|(program, verdict)| {
            Trial::test(program, move || {
                verdict.map_err(|error| format!("{error:?}").into())
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}
