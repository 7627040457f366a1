//! What this kernel and node support, checked before anything is loaded or written: each
//! capability with the reason why it is missing and the fix.

mod found;
mod list;

use std::collections::BTreeMap;
use std::path::Path;

use nlmfo_common::layout::Layout;
use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;

use super::btf::KernelBtf;
use super::gate_layout::{self, GRACE_NET_ID};
use super::layout::{self, MODULES, OBJECTS};
use super::netlink::{Command, NfsdNetlink};
use super::nfsd::{Control, Nfsd, NfsdError};
use super::symbols::Symbols;
use super::unlock_bug::{self, Verdict};
use super::{bpffs, lockd, modules, netns, sockets_layout, state_layout};
use crate::causes::chain;

use found::{Found, PLEASE_REPORT};
use list::unlock_ip_works;
pub use list::{Check, Need};

/// perf's way to create a kprobe, there since 4.17 with `CONFIG_KPROBE_EVENTS`.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";
/// 0 prevents every probe on a function's entry from being called, silently.
const FTRACE: &str = "/proc/sys/kernel/ftrace_enabled";
const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
/// Kernels with tcx (6.6 and newer) have this function.
const TCX_FUNCTION: &str = "tcx_prog_attach";
/// Kernels with links for probes (5.15 and newer) have this one.
const LINK_FUNCTION: &str = "bpf_perf_link_release";
/// The modules of the clsact qdisc and of its BPF filters, and a function of each.
const CLSACT: &str = "sch_ingress";
const CLSACT_FUNCTION: &str = "clsact_init";
const FILTER: &str = "cls_bpf";
const FILTER_FUNCTION: &str = "cls_bpf_classify";

/// Whether something can be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum Capability {
    Available,
    Missing {
        reason: String,
        /// What the operator can do, as text or as a command.
        remedy: String,
    },
    /// Unknown, because a capability that it needs is missing; that one has the reason and the
    /// fix.
    Unknown {
        because: &'static str,
    },
}

impl Capability {
    pub fn is_available(&self) -> bool {
        matches!(self, Capability::Available)
    }

    pub fn missing(reason: impl ToString, remedy: impl Into<String>) -> Self {
        Capability::Missing {
            reason: reason.to_string(),
            remedy: remedy.into(),
        }
    }

    pub fn when(is_there: bool, reason: impl ToString, remedy: impl Into<String>) -> Self {
        match is_there {
            true => Capability::Available,
            false => Capability::missing(reason, remedy),
        }
    }

    /// The result of `find`, or unknown if one of the named capabilities that it depends on is not
    /// available.
    pub fn unless(
        rests_on: &[(&'static str, &Capability)],
        find: impl FnOnce() -> Capability,
    ) -> Self {
        let mut rests_on = rests_on.iter();
        match rests_on.find(|(_, capability)| !capability.is_available()) {
            Some((because, _)) => Capability::Unknown { because },
            None => find(),
        }
    }
}

/// All facts that the choice of methods depends on.
#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    /// As `uname -r` prints it.
    pub release: String,
    /// Inode number of this process's network namespace.
    pub netns: u64,
    /// The capabilities (in the sense of capabilities(7)) that nlmfo needs.
    pub privileges: Capability,
    /// Lets programs read kernel memory: not in lockdown's confidentiality mode.
    pub kernel_reads: Capability,
    /// `/proc/kallsyms` shows addresses.
    pub symbols: Capability,
    /// Probes on functions run.
    pub ftrace: Capability,
    pub btf: Capability,
    pub lockd: Capability,
    /// Every field and object that the programs read is where BTF and kallsyms say.
    pub layouts: Capability,
    #[serde(skip)]
    pub layout: Option<Layout>,
    pub kprobes: Capability,
    /// The functions that the caller wants to probe.
    pub functions: BTreeMap<String, Capability>,
    /// nfsd's filesystem is mounted, and nfsd has threads.
    pub nfsd: Capability,
    /// `None` where nfsd's filesystem is not mounted.
    pub nfsd_threads: Option<u32>,
    /// `/proc/fs/nfsd/unlock_ip`, which takes IPv4 addresses only.
    pub procfs_unlock_ip: Capability,
    pub procfs_unlock_filesystem: Capability,
    /// nfsd's netlink command, which takes IPv6 addresses too.
    pub netlink_unlock_ip: Capability,
    /// Whether `unlock_ip` works.
    pub unlock_ip: Verdict,
    /// The same as text.
    #[serde(skip)]
    pub unlock_ip_works: Capability,
    /// The RFC's `/proc/fs/nfsd/nlm_unlock`.
    pub rfc_unlock: Capability,
    /// The RFC's `/proc/fs/nfsd/nlm_set_ip_grace`.
    pub rfc_grace: Capability,
    /// A place to pin what must outlive the process; mounted when needed.
    pub bpffs: Capability,
    /// Probes that can be pinned.
    pub bpf_links: Capability,
    /// The kernel's own grace can be read by programs.
    pub grace_list: Capability,
    pub tcx: Capability,
    /// Where the gate is attached on kernels without tcx.
    pub clsact: Capability,
}

/// The symbols that commands want, except the functions that they probe.
pub fn symbols<'a>() -> impl Iterator<Item = &'a str> {
    (OBJECTS.into_iter().chain(state_layout::OBJECTS)).chain([
        unlock_bug::FUNCTION,
        TCX_FUNCTION,
        LINK_FUNCTION,
        CLSACT_FUNCTION,
        FILTER_FUNCTION,
        GRACE_NET_ID,
        sockets_layout::SERVICE,
    ])
}

impl Facts {
    /// Checks the running kernel; `functions` are those to be probed.
    pub fn gather(functions: &[&str]) -> Facts {
        let release = super::release().unwrap_or_else(|error| format!("unknown ({error})"));
        let symbols = Symbols::load(functions.iter().copied().chain(symbols()));
        let btf = KernelBtf::load(&MODULES);
        let nfsd = Nfsd::mounted();
        let threads = nfsd.as_ref().ok().and_then(|nfsd| nfsd.threads().ok());
        let netlink = NfsdNetlink::open();
        let found = Found {
            release: &release,
            symbols: &symbols,
            btf: &btf,
            nfsd: &nfsd,
            netlink: &netlink,
        };

        let privileges =
            privileges(capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective));
        let symbols_shown =
            Capability::unless(&[("privileges", &privileges)], || found.addresses());
        let btf_there = found.types();
        let nfsd_runs = nfsd_state(&nfsd, threads);
        // Some capabilities need only nfsd's filesystem, not its threads.
        let nfsd_mounted = match &nfsd {
            Ok(_) => Capability::Available,
            Err(_) => nfsd_runs.clone(),
        };
        let lockd = lockd_state(&nfsd_runs);
        let by_symbols = [("symbols", &symbols_shown)];
        let of_lockd = [("symbols", &symbols_shown), ("lockd", &lockd)];
        let by_types = [
            ("symbols", &symbols_shown),
            ("btf", &btf_there),
            ("lockd", &lockd),
        ];
        let mounted = [("nfsd", &nfsd_mounted)];
        let control = |control| Capability::unless(&mounted, || found.control(control));

        let mut layout = None;
        let layouts = Capability::unless(&by_types, || match found.layout(layout::fill) {
            Ok(filled) => {
                layout = Some(filled);
                Capability::Available
            }
            Err(error) => Capability::missing(error, PLEASE_REPORT),
        });
        let grace_list = Capability::unless(&by_types, || {
            match (layouts.is_available(), found.layout(gate_layout::fill)) {
                (false, _) => Capability::Unknown { because: "layouts" },
                (true, Ok(_)) => Capability::Available,
                (true, Err(error)) => Capability::missing(error, PLEASE_REPORT),
            }
        });
        let unlock_ip = found.unlock_ip();

        Facts {
            netns: netns::network().map_or(0, |netns| netns.inode),
            kernel_reads: kernel_reads(std::fs::read_to_string(LOCKDOWN).ok().as_deref()),
            ftrace: ftrace(std::fs::read_to_string(FTRACE).ok().as_deref()),
            kprobes: kprobes(),
            functions: functions
                .iter()
                .map(|&name| {
                    let capability = Capability::unless(&of_lockd, || found.function(name));
                    (name.to_owned(), capability)
                })
                .collect(),
            nfsd_threads: threads,
            procfs_unlock_ip: control(Control::UnlockIp),
            procfs_unlock_filesystem: control(Control::UnlockFilesystem),
            netlink_unlock_ip: Capability::unless(&mounted, || {
                found.netlink_command(Command::UnlockIp)
            }),
            unlock_ip_works: Capability::unless(&by_types, || unlock_ip_works(&unlock_ip)),
            unlock_ip,
            rfc_unlock: control(Control::NlmUnlock),
            rfc_grace: control(Control::NlmSetIpGrace),
            bpffs: bpffs_state(),
            bpf_links: Capability::unless(&by_symbols, || found.bpf_links()),
            clsact: Capability::unless(&by_symbols, || {
                clsact(
                    |function| found.has_function(function),
                    |module| modules::can_load(&release, module),
                )
            }),
            tcx: Capability::unless(&by_symbols, || found.tcx()),
            nfsd: nfsd_runs,
            symbols: symbols_shown,
            btf: btf_there,
            layouts,
            layout,
            grace_list,
            privileges,
            lockd,
            release,
        }
    }
}

fn privileges(effective: CapabilitySet) -> Capability {
    let wanted = [
        (CapabilitySet::SYS_ADMIN, "CAP_SYS_ADMIN"),
        (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
        (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
        (CapabilitySet::DAC_READ_SEARCH, "CAP_DAC_READ_SEARCH"),
        (CapabilitySet::SYS_RAWIO, "CAP_SYS_RAWIO"),
        (CapabilitySet::SYSLOG, "CAP_SYSLOG"),
    ];
    let lacking: Vec<&str> = wanted
        .iter()
        .filter(|(set, _)| !effective.contains(*set))
        .map(|w| w.1)
        .collect();
    Capability::when(
        lacking.is_empty(),
        format!("this process lacks {}", lacking.join(", ")),
        "run nlmfo as root, not in an unprivileged container",
    )
}

/// lockd is loaded with the server.
fn lockd_state(nfsd_runs: &Capability) -> Capability {
    match lockd::is_loaded() {
        true => Capability::Available,
        false => Capability::unless(&[("nfsd", nfsd_runs)], || {
            Capability::missing("lockd is not loaded", "`modprobe lockd`")
        }),
    }
}

fn kprobes() -> Capability {
    Capability::when(
        Path::new(KPROBES).exists(),
        format!("{KPROBES} does not exist"),
        "boot a kernel with CONFIG_KPROBE_EVENTS=y",
    )
}

fn bpffs_state() -> Capability {
    Capability::when(
        bpffs::is_mounted(),
        format!(
            "no BPF filesystem is mounted on {}",
            bpffs::root().display()
        ),
        "mount -t bpf bpf /sys/fs/bpf",
    )
}

/// `lockdown` is the file's text, e.g. `none [integrity] confidentiality`.
fn kernel_reads(lockdown: Option<&str>) -> Capability {
    Capability::when(
        !lockdown.is_some_and(|modes| modes.contains("[confidentiality]")),
        format!("{LOCKDOWN} is in confidentiality mode: programs cannot read kernel memory"),
        "boot without lockdown=confidentiality",
    )
}

/// `threads` of nfsd, if it is mounted.
pub fn nfsd_state(nfsd: &Result<Nfsd, NfsdError>, threads: Option<u32>) -> Capability {
    match (nfsd, threads) {
        (Err(error), _) => Capability::missing(
            chain(error),
            "start the NFS server (`systemctl start nfs-server`)",
        ),
        (Ok(_), Some(0)) => Capability::missing(
            "nfsd has no threads in this network namespace",
            "start the NFS server (`systemctl start nfs-server`)",
        ),
        (Ok(_), Some(_)) => Capability::Available,
        (Ok(_), None) => Capability::missing(
            "cannot read the number of nfsd threads",
            "run nlmfo as root",
        ),
    }
}

/// Decides by the modules that are loaded and those that can be.
fn clsact(has_function: impl Fn(&str) -> bool, can_load: impl Fn(&str) -> bool) -> Capability {
    let parts = [(CLSACT_FUNCTION, CLSACT), (FILTER_FUNCTION, FILTER)];
    let lacking = parts
        .into_iter()
        .find(|(function, module)| !has_function(function) && !can_load(module));
    match lacking {
        None => Capability::Available,
        Some((_, module)) => Capability::missing(
            format!("the module {module} is not installed"),
            "needed only without tcx: install all modules of the kernel",
        ),
    }
}

/// `enabled` is the file's text; kernels without it have no such switch.
fn ftrace(enabled: Option<&str>) -> Capability {
    Capability::when(
        enabled.is_none_or(|enabled| enabled.trim_end() != "0"),
        "kernel.ftrace_enabled is 0: probes do not run",
        "`sysctl kernel.ftrace_enabled=1`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_privileges_that_lack() {
        assert_eq!(privileges(CapabilitySet::all()), Capability::Available);
        let Capability::Missing { reason, .. } =
            privileges(CapabilitySet::all().difference(CapabilitySet::NET_ADMIN))
        else {
            panic!("NET_ADMIN was not missed");
        };
        assert_eq!(reason, "this process lacks CAP_NET_ADMIN");
    }

    #[test]
    fn only_confidentiality_keeps_programs_from_reading() {
        assert!(kernel_reads(None).is_available());
        assert!(kernel_reads(Some("none [integrity] confidentiality\n")).is_available());
        assert!(!kernel_reads(Some("none integrity [confidentiality]\n")).is_available());
    }

    #[test]
    fn a_stopped_nfsd_is_told_from_an_absent_one() {
        let absent = Err(NfsdError::NotMounted("/proc/fs/nfsd".into()));
        let Capability::Missing { reason, .. } = nfsd_state(&absent, None) else {
            panic!("an absent nfsd is missing");
        };
        assert!(reason.contains("not mounted"), "{reason}");
    }

    #[test]
    fn clsact_may_be_loaded_or_wait_to_be() {
        assert!(clsact(|_| true, |_| false).is_available());
        assert!(clsact(|_| false, |_| true).is_available());
        let Capability::Missing { reason, .. } = clsact(|_| false, |module| module == CLSACT)
        else {
            panic!("cls_bpf was not missed");
        };
        assert!(reason.contains("cls_bpf"), "{reason}");
    }

    #[test]
    fn gathering_never_fails() {
        // Whatever this machine is: an answer for each function, and every missing
        // thing has its reason and its remedy.
        let facts = Facts::gather(&["no_such_function_of_any_kernel"]);
        assert!(!facts.functions["no_such_function_of_any_kernel"].is_available());
        for check in facts.checks() {
            if let Capability::Missing { reason, remedy } = check.capability {
                assert!(!reason.is_empty() && !remedy.is_empty(), "{}", check.name);
            }
        }
    }
}
