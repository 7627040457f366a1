//! Finds single capabilities from what was read of the kernel.

use super::Capability;
use crate::causes::chain;
use crate::kernel::btf::{BtfError, KernelBtf};
use crate::kernel::layout::LayoutError;
use crate::kernel::netlink::{Command, NetlinkError, NfsdNetlink};
use crate::kernel::nfsd::{Control, Nfsd, NfsdError};
use crate::kernel::symbols::{Symbols, SymbolsError};

pub(super) const PLEASE_REPORT: &str = "please report this line: nlmfo does not know this kernel";

/// What the capabilities are found in.
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
