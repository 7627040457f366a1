//! Why the address of a symbol is not known.

use std::io;

use super::KALLSYMS;

/// Why the address of a symbol is not known.
#[derive(Debug, thiserror::Error)]
pub enum SymbolsError {
    #[error("cannot read {KALLSYMS}")]
    Read(#[from] io::Error),
    #[error(
        "{KALLSYMS} shows every address as zero: run as root, or set kernel.kptr_restrict to 1 \
         or less (`sysctl kernel.kptr_restrict=1`)"
    )]
    Hidden,
    #[error("{KALLSYMS} has no symbol `{name}`{}", .module.map(|m| format!(" of {m}: is the module loaded (`modprobe {m}`)?")).unwrap_or_default())]
    Missing {
        name: String,
        module: Option<&'static str>,
    },
    #[error("{KALLSYMS} has {count} symbols named `{name}`, and none is module {module}'s")]
    Ambiguous {
        name: String,
        module: &'static str,
        count: usize,
    },
}
