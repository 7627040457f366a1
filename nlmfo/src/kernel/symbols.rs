//! Addresses of the kernel's functions and objects, from `/proc/kallsyms`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader};

const KALLSYMS: &str = "/proc/kallsyms";

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

/// One line of `/proc/kallsyms`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    pub address: u64,
    /// As nm writes it: `t` or `T` is code, `w` or `W` weak, the rest is data.
    pub kind: char,
    /// `None` for the kernel proper, so also for what is built in.
    pub module: Option<String>,
}

impl Symbol {
    pub fn is_function(&self) -> bool {
        matches!(self.kind.to_ascii_lowercase(), 't' | 'w')
    }
}

/// The symbols that were asked for.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    wanted: BTreeMap<String, Vec<Symbol>>,
    /// Every address in the kernel, ascending: where one object ends at the latest.
    addresses: Vec<u64>,
}

impl Symbols {
    /// Reads the symbols of these names, one pass over some 150,000 lines.
    pub fn load<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, SymbolsError> {
        Self::parse(BufReader::new(File::open(KALLSYMS)?), names)
    }

    /// The same from a text in the form of `/proc/kallsyms`, of whatever kernel.
    pub fn parse<'a>(
        mut text: impl BufRead,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, SymbolsError> {
        let names: BTreeSet<&str> = names.into_iter().collect();
        let mut symbols = Symbols::default();
        let mut line = String::new();
        while text.read_line(&mut line)? > 0 {
            if let Some(line) = Line::parse(&line) {
                symbols.addresses.push(line.address);
                if names.contains(line.name) {
                    let of_name = symbols.wanted.entry(line.name.to_owned()).or_default();
                    of_name.push(line.symbol());
                }
            }
            line.clear();
        }
        // Per-CPU symbols of x86-64 are small offsets, some of them 0, also when
        // nothing is hidden.
        if symbols.addresses.iter().all(|&address| address == 0) {
            return Err(SymbolsError::Hidden);
        }
        symbols.addresses.sort_unstable();
        symbols.addresses.dedup();
        Ok(symbols)
    }

    /// All symbols of that name, if it was asked for.
    pub fn all(&self, name: &str) -> &[Symbol] {
        self.wanted.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether code of that name is in the kernel: not inlined, and its module loaded.
    pub fn has_function(&self, name: &str) -> bool {
        self.all(name).iter().any(Symbol::is_function)
    }

    /// The one symbol of that name in `module`, or in the kernel proper where the
    /// module is built in.
    pub fn in_module(&self, name: &str, module: &'static str) -> Result<&Symbol, SymbolsError> {
        let all = self.all(name);
        if let Some(found) = all.iter().find(|s| s.module.as_deref() == Some(module)) {
            return Ok(found);
        }
        let built_in: Vec<&Symbol> = all.iter().filter(|s| s.module.is_none()).collect();
        match built_in[..] {
            [found] => Ok(found),
            [] => Err(SymbolsError::Missing {
                name: name.to_owned(),
                module: Some(module),
            }),
            _ => Err(SymbolsError::Ambiguous {
                name: name.to_owned(),
                module,
                count: built_in.len(),
            }),
        }
    }

    /// Bytes from `address` to the next symbol, which an object there cannot
    /// exceed; `None` for the last one.
    pub fn room_at(&self, address: u64) -> Option<u64> {
        let next = self.addresses.partition_point(|&a| a <= address);
        Some(self.addresses.get(next)? - address)
    }
}

/// One of some 150,000 lines, of which a few are wanted: nothing is copied.
struct Line<'a> {
    address: u64,
    kind: char,
    name: &'a str,
    /// In brackets.
    module: Option<&'a str>,
}

impl<'a> Line<'a> {
    /// `ADDRESS KIND NAME`, and for a module's symbol a tab and `[MODULE]`.
    fn parse(line: &'a str) -> Option<Self> {
        let (address, rest) = line.split_once(' ')?;
        let (kind, rest) = rest.split_once(' ')?;
        let rest = rest.trim_end();
        let (name, module) = match rest.split_once('\t') {
            Some((name, module)) => (name, Some(module)),
            None => (rest, None),
        };
        Some(Line {
            address: u64::from_str_radix(address, 16).ok()?,
            kind: kind.chars().next()?,
            name,
            module,
        })
    }

    fn symbol(&self) -> Symbol {
        Symbol {
            address: self.address,
            kind: self.kind,
            module: (self.module).map(|module| module.trim_matches(['[', ']']).to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Lines as 6.12.107 prints them.
    const TEXT: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff9a400000 T _text
ffffffff9a4c1230 t locks_show
ffffffffc0a51000 t nlmsvc_lock\t[lockd]
ffffffffc0a62400 r nlmsvc_lock_operations\t[lockd]
ffffffffc0a65040 b nlm_files\t[lockd]
ffffffffc0a65440 b nlmsvc_timeout\t[lockd]
ffffffffc0b65440 t twice\t[one]
ffffffffc0c65440 t twice\t[two]
";

    fn symbols(names: &[&str]) -> Symbols {
        Symbols::parse(TEXT.as_bytes(), names.iter().copied()).unwrap()
    }

    #[test]
    fn finds_a_symbol_in_its_module_and_the_room_it_has() {
        let symbols = symbols(&["nlm_files", "nlmsvc_lock"]);
        let files = symbols.in_module("nlm_files", "lockd").unwrap();
        assert_eq!(files.address, 0xffff_ffff_c0a6_5040);
        assert_eq!(symbols.room_at(files.address), Some(1024));
        assert!(symbols.has_function("nlmsvc_lock"));
        assert!(!symbols.has_function("nlm_files"));
        assert_eq!(symbols.room_at(0xffff_ffff_c0c6_5440), None);
    }

    #[test]
    fn a_built_in_symbol_counts_for_the_module() {
        let symbols = symbols(&["locks_show"]);
        assert_eq!(
            symbols.in_module("locks_show", "lockd").unwrap().module,
            None
        );
    }

    #[test]
    fn another_modules_symbol_does_not() {
        let symbols = symbols(&["twice"]);
        assert_eq!(
            symbols.in_module("twice", "one").unwrap().address,
            0xffff_ffff_c0b6_5440
        );
        let error = symbols.in_module("twice", "lockd").unwrap_err();
        assert!(error.to_string().contains("modprobe lockd"), "{error}");
    }

    #[test]
    fn hidden_addresses_are_an_error_with_a_remedy() {
        let text = "0000000000000000 T _text\n0000000000000000 t nlmsvc_lock\t[lockd]\n";
        let error = Symbols::parse(text.as_bytes(), ["nlmsvc_lock"]).unwrap_err();
        assert!(matches!(error, SymbolsError::Hidden));
        assert!(error.to_string().contains("kptr_restrict"));
    }
}
