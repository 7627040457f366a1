//! Decides single capabilities by what was read of the kernel.

use super::{Capability, LINK_FUNCTION, TCX_FUNCTION};
use crate::causes::chain;
use crate::kernel::btf::{BtfError, KernelBtf};
use crate::kernel::layout::LayoutError;
use crate::kernel::netlink::{Command, NetlinkError, NfsdNetlink};
use crate::kernel::nfsd::{Control, Nfsd, NfsdError};
use crate::kernel::symbols::{Symbols, SymbolsError};
use crate::kernel::unlock_bug::{self, Verdict};

pub(super) const PLEASE_REPORT: &str = "please report this line: nlmfo does not know this kernel";

/// What was read of the kernel.
pub(super) struct Found<'a> {
    pub release: &'a str,
    pub symbols: &'a Result<Symbols, SymbolsError>,
    pub btf: &'a Result<KernelBtf, BtfError>,
    pub nfsd: &'a Result<Nfsd, NfsdError>,
    pub netlink: &'a Result<NfsdNetlink, NetlinkError>,
}

impl Found<'_> {
    pub fn layout<T>(
        &self,
        fill: impl FnOnce(&KernelBtf, &Symbols, &str) -> Result<T, LayoutError>,
    ) -> Result<T, String> {
        match (self.btf, self.symbols) {
            (Ok(btf), Ok(symbols)) => {
                fill(btf, symbols, self.release).map_err(|error| chain(&error))
            }
            (Err(error), _) => Err(chain(error)),
            (_, Err(error)) => Err(chain(error)),
        }
    }

    /// Whether symbols have addresses.
    pub fn addresses(&self) -> Capability {
        match self.symbols {
            Ok(_) => Capability::Available,
            Err(SymbolsError::Hidden) => Capability::missing(
                "/proc/kallsyms shows all addresses as zero: kernel.kptr_restrict is 2",
                "`sysctl kernel.kptr_restrict=1`",
            ),
            Err(error) => Capability::missing(chain(error), "mount /proc"),
        }
    }

    /// Whether the kernel has type information.
    pub fn types(&self) -> Capability {
        match self.btf {
            Ok(_) => Capability::Available,
            Err(error) => Capability::missing(
                chain(error),
                "boot a kernel with CONFIG_DEBUG_INFO_BTF=y and CONFIG_DEBUG_INFO_BTF_MODULES=y",
            ),
        }
    }

    pub fn has_function(&self, name: &str) -> bool {
        (self.symbols.as_ref()).is_ok_and(|symbols| symbols.has_function(name))
    }

    pub fn function(&self, name: &str) -> Capability {
        Capability::when(
            self.has_function(name),
            format!("the kernel has no function {name}: it was inlined or renamed"),
            PLEASE_REPORT,
        )
    }

    pub fn bpf_links(&self) -> Capability {
        Capability::when(
            self.has_function(LINK_FUNCTION),
            "this kernel has no links for probes (requires 5.15)",
            "boot a newer kernel",
        )
    }

    pub fn tcx(&self) -> Capability {
        Capability::when(
            self.has_function(TCX_FUNCTION),
            "this kernel has no tcx (requires 6.6)",
            "nothing to do: the gate uses a clsact qdisc instead",
        )
    }

    /// Whether `unlock_ip` works, by its code.
    pub fn unlock_ip(&self) -> Verdict {
        let unknown = |reason| Verdict::Unknown { reason };
        let address = match self.symbols {
            Ok(symbols) => symbols.in_module(unlock_bug::FUNCTION, "lockd"),
            Err(error) => return unknown(chain(error)),
        };
        let srcaddr = match self.btf {
            Ok(btf) => btf.of("lockd").field("nlm_host.h_srcaddr"),
            Err(error) => return unknown(chain(error)),
        };
        match (address, srcaddr) {
            (Ok(function), Ok(srcaddr)) => unlock_bug::judge_running(function.address, srcaddr),
            (Err(error), _) => unknown(chain(&error)),
            (_, Err(error)) => unknown(chain(&error)),
        }
    }

    pub fn control(&self, control: Control) -> Capability {
        match self.nfsd {
            Ok(nfsd) => Capability::when(
                nfsd.has(control),
                format!("this kernel has no {}", nfsd.path(control).display()),
                OTHER_METHOD,
            ),
            Err(error) => Capability::missing(chain(error), OTHER_METHOD),
        }
    }

    pub fn netlink_command(&self, command: Command) -> Capability {
        match self.netlink {
            Ok(netlink) => Capability::when(
                netlink.offers(command),
                NetlinkError::NoCommand(command),
                OTHER_METHOD,
            ),
            Err(error) => Capability::missing(chain(error), OTHER_METHOD),
        }
    }
}

const OTHER_METHOD: &str = "nothing to do: another method is used";
