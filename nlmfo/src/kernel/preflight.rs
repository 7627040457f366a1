//! What this kernel and node support, found out before anything is loaded or
//! written: each capability with the reason why it is missing and the remedy.

mod list;

use std::collections::BTreeMap;
use std::path::Path;

use nlmfo_common::layout::Layout;
use rustix::thread::{CapabilitySet, capabilities};
use serde::Serialize;

use super::btf::KernelBtf;
use super::gate_layout::{self, GRACE_NET_ID};
use super::layout::{self, MODULES, OBJECTS};
use super::netlink::{Command, NetlinkError, NfsdNetlink};
use super::nfsd::{Control, Nfsd, NfsdError};
use super::symbols::{Symbols, SymbolsError};
use super::unlock_bug::{self, Verdict};
use super::{bpffs, lockd, modules, netns};
use crate::causes::chain;

pub use list::{Check, Need};

/// perf's way to create a kprobe, there since 4.17 with CONFIG_KPROBE_EVENTS.
const KPROBES: &str = "/sys/bus/event_source/devices/kprobe";
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
        /// What the operator can do, in words or as a command.
        remedy: String,
    },
}

impl Capability {
    pub fn is_available(&self) -> bool {
        matches!(self, Capability::Available)
    }

    fn missing(reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        Capability::Missing {
            reason: reason.into(),
            remedy: remedy.into(),
        }
    }

    fn when(is_there: bool, reason: impl Into<String>, remedy: impl Into<String>) -> Self {
        match is_there {
            true => Capability::Available,
            false => Capability::missing(reason, remedy),
        }
    }
}

/// Everything that the choices between ways depend on.
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
    /// Whether those two release anything.
    pub unlock_ip: Verdict,
    /// The RFC's `/proc/fs/nfsd/nlm_unlock`.
    pub rfc_unlock: Capability,
    /// The RFC's `/proc/fs/nfsd/nlm_set_ip_grace`.
    pub rfc_grace: Capability,
    /// A place to pin what must outlive the process; it is mounted when it is needed.
    pub bpffs: Capability,
    /// Probes that can be pinned.
    pub bpf_links: Capability,
    /// The kernel's own grace can be read by programs.
    pub grace_list: Capability,
    pub tcx: Capability,
    /// The gate's place on kernels without tcx.
    pub clsact: Capability,
}

impl Facts {
    /// Looks at the running kernel; `functions` are those that are to be probed.
    pub fn gather(functions: &[&str]) -> Facts {
        let release = super::release().unwrap_or_else(|error| format!("unknown ({error})"));
        let lockd = Capability::when(
            lockd::is_loaded(),
            "lockd is not in the kernel",
            "start the NFS server (`systemctl start nfs-server`), or `modprobe lockd`",
        );
        let wanted = functions.iter().copied().chain(OBJECTS);
        let symbols = Symbols::load(wanted.chain([
            unlock_bug::FUNCTION,
            TCX_FUNCTION,
            LINK_FUNCTION,
            CLSACT_FUNCTION,
            FILTER_FUNCTION,
            GRACE_NET_ID,
        ]));
        let btf = KernelBtf::load(&MODULES);
        let layout = match (&btf, &symbols) {
            (Ok(btf), Ok(symbols)) => {
                layout::fill(btf, symbols, &release).map_err(|error| chain(&error))
            }
            (Err(error), _) => Err(chain(&error)),
            (_, Err(error)) => Err(chain(&error)),
        };
        let gate_layout = match (&btf, &symbols) {
            (Ok(btf), Ok(symbols)) => {
                gate_layout::fill(btf, symbols, &release).map_err(|error| chain(&error))
            }
            (Err(error), _) => Err(chain(&error)),
            (_, Err(error)) => Err(chain(&error)),
        };
        let nfsd = Nfsd::mounted();
        let threads = nfsd.as_ref().ok().and_then(|nfsd| nfsd.threads().ok());
        let netlink = NfsdNetlink::open();
        let has_function = |name: &str| function(name, &symbols);

        Facts {
            netns: netns::network().map_or(0, |netns| netns.inode),
            privileges: privileges(
                capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective),
            ),
            kernel_reads: kernel_reads(std::fs::read_to_string(LOCKDOWN).ok().as_deref()),
            btf: match &btf {
                Ok(_) => Capability::Available,
                Err(error) => Capability::missing(
                    chain(&error),
                    "boot a kernel with CONFIG_DEBUG_INFO_BTF=y and CONFIG_DEBUG_INFO_BTF_MODULES=y",
                ),
            },
            layouts: match &layout {
                Ok(_) => Capability::Available,
                Err(error) => Capability::missing(error, "clear what is missing above first"),
            },
            layout: layout.ok(),
            kprobes: Capability::when(
                Path::new(KPROBES).exists(),
                format!("{KPROBES} is not there"),
                "boot a kernel with CONFIG_KPROBE_EVENTS=y",
            ),
            functions: functions
                .iter()
                .map(|&f| (f.to_owned(), has_function(f)))
                .collect(),
            nfsd: nfsd_state(&nfsd, threads),
            nfsd_threads: threads,
            procfs_unlock_ip: control(&nfsd, Control::UnlockIp),
            procfs_unlock_filesystem: control(&nfsd, Control::UnlockFilesystem),
            netlink_unlock_ip: netlink_command(&netlink, Command::UnlockIp),
            unlock_ip: unlock_ip(&btf, &symbols),
            rfc_unlock: control(&nfsd, Control::NlmUnlock),
            rfc_grace: control(&nfsd, Control::NlmSetIpGrace),
            bpffs: Capability::when(
                bpffs::is_mounted(),
                format!(
                    "no BPF filesystem is mounted on {}",
                    bpffs::root().display()
                ),
                "mount -t bpf bpf /sys/fs/bpf",
            ),
            bpf_links: Capability::when(
                has_function(LINK_FUNCTION).is_available(),
                "this kernel gives no links for probes (5.15 and newer do)",
                "boot a newer kernel",
            ),
            grace_list: match gate_layout {
                Ok(_) => Capability::Available,
                Err(error) => Capability::missing(error, "clear what is missing above first"),
            },
            clsact: clsact(
                |function| has_function(function).is_available(),
                |module| modules::can_load(&release, module),
            ),
            tcx: Capability::when(
                has_function(TCX_FUNCTION).is_available(),
                "this kernel has no tcx (6.6 and newer have)",
                "nothing to do: the gate attaches through a clsact qdisc instead",
            ),
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
        format!("this process has no {}", lacking.join(", ")),
        "run nlmfo as root, outside of unprivileged containers",
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

fn function(name: &str, symbols: &Result<Symbols, SymbolsError>) -> Capability {
    match symbols {
        Ok(symbols) => Capability::when(
            symbols.has_function(name),
            format!(
                "the kernel has no function {name}: its module is not loaded, or it is inlined or renamed"
            ),
            "load lockd and nfsd; if they are, please report this kernel's release",
        ),
        Err(error) => Capability::missing(chain(&error), "see the reason"),
    }
}

fn nfsd_state(nfsd: &Result<Nfsd, NfsdError>, threads: Option<u32>) -> Capability {
    match (nfsd, threads) {
        (Err(error), _) => Capability::missing(
            chain(&error),
            "start the NFS server (`systemctl start nfs-server`)",
        ),
        (Ok(_), Some(0)) => Capability::missing(
            "nfsd has no threads in this network namespace",
            "start the NFS server (`systemctl start nfs-server`)",
        ),
        (Ok(_), Some(_)) => Capability::Available,
        (Ok(_), None) => Capability::missing(
            "the number of nfsd's threads cannot be read",
            "run nlmfo as root",
        ),
    }
}

fn control(nfsd: &Result<Nfsd, NfsdError>, control: Control) -> Capability {
    match nfsd {
        Ok(nfsd) => Capability::when(
            nfsd.has(control),
            format!("this kernel has no {}", nfsd.path(control).display()),
            "nothing to do: another way is used",
        ),
        Err(error) => Capability::missing(chain(&error), "mount nfsd's filesystem"),
    }
}

fn netlink_command(netlink: &Result<NfsdNetlink, NetlinkError>, command: Command) -> Capability {
    let remedy = "nothing to do: another way is used";
    match netlink {
        Ok(netlink) => Capability::when(
            netlink.offers(command),
            NetlinkError::NoCommand(command).to_string(),
            remedy,
        ),
        Err(error) => Capability::missing(chain(&error), remedy),
    }
}

/// By what is loaded and what can be.
fn clsact(has_function: impl Fn(&str) -> bool, can_load: impl Fn(&str) -> bool) -> Capability {
    let parts = [(CLSACT_FUNCTION, CLSACT), (FILTER_FUNCTION, FILTER)];
    let lacking = parts
        .into_iter()
        .find(|(function, module)| !has_function(function) && !can_load(module));
    match lacking {
        None => Capability::Available,
        Some((_, module)) => Capability::missing(
            format!("the module {module} is neither in the kernel nor among its modules"),
            "needed only without tcx: install the kernel's full set of modules",
        ),
    }
}

fn unlock_ip(
    btf: &Result<KernelBtf, super::btf::BtfError>,
    symbols: &Result<Symbols, SymbolsError>,
) -> Verdict {
    let address = match symbols {
        Ok(symbols) => symbols.in_module(unlock_bug::FUNCTION, "lockd"),
        Err(error) => {
            return Verdict::Unknown {
                reason: chain(&error),
            };
        }
    };
    let srcaddr = match btf {
        Ok(btf) => btf.of("lockd").field("nlm_host.h_srcaddr"),
        Err(error) => {
            return Verdict::Unknown {
                reason: chain(&error),
            };
        }
    };
    match (address, srcaddr) {
        (Ok(function), Ok(srcaddr)) => unlock_bug::judge_running(function.address, srcaddr),
        (Err(error), _) => Verdict::Unknown {
            reason: chain(&error),
        },
        (_, Err(error)) => Verdict::Unknown {
            reason: chain(&error),
        },
    }
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
        assert_eq!(reason, "this process has no CAP_NET_ADMIN");
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
