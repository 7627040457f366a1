//! Addresses of the kernel's functions and objects, from `/proc/kallsyms`.

mod error;
mod kept;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};

pub(crate) use error::SymbolsError;
pub(crate) use kept::keep_in;
use serde::{Deserialize, Serialize};

const KALLSYMS: &str = "/proc/kallsyms";

/// One line of `/proc/kallsyms`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Symbol {
    pub address: u64,
    /// As nm writes it: `t` or `T` is code, `w` or `W` weak, the rest is data.
    pub kind: char,
    /// `None` for the kernel proper, so also for what is built in.
    pub module: Option<String>,
    /// Bytes to the next symbol, which the object cannot exceed; `None` for the last one.
    pub room: Option<u64>,
}

impl Symbol {
    pub fn is_function(&self) -> bool {
        matches!(self.kind.to_ascii_lowercase(), 't' | 'w')
    }
}

/// The symbols that were asked for. A name that the kernel does not have has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Symbols(BTreeMap<String, Vec<Symbol>>);

impl Symbols {
    /// Finds the symbols of these names. The kernel writes some 150,000 lines, which takes longer than
    /// the rest of a start. The result is kept for later runs: see [`keep_in`].
    ///
    /// # Errors
    /// If the file cannot be read, or hides the addresses.
    pub fn load<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, SymbolsError> {
        kept::load(names.into_iter().collect(), |names| {
            let text = BufReader::with_capacity(1 << 16, File::open(KALLSYMS)?);
            Self::parse(text, names.iter().copied())
        })
    }

    /// Finds them in a text in the form of `/proc/kallsyms`, of whatever kernel.
    ///
    /// # Errors
    /// As [`Symbols::load`].
    pub fn parse<'a>(
        mut text: impl BufRead,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, SymbolsError> {
        let mut found: BTreeMap<&str, Vec<Symbol>> =
            names.into_iter().map(|name| (name, Vec::new())).collect();
        let mut addresses = Vec::new();
        let mut line = Vec::new();
        while text.read_until(b'\n', &mut line)? > 0 {
            if let Some(line) = Line::parse(&line) {
                addresses.push(line.address);
                let wanted = str::from_utf8(line.name).ok();
                if let Some(of_name) = wanted.and_then(|name| found.get_mut(name)) {
                    of_name.push(line.symbol());
                }
            }
            line.clear();
        }
        // Per-CPU symbols of x86-64 are small offsets, some of them 0, also when
        // nothing is hidden.
        if addresses.iter().all(|&address| address == 0) {
            return Err(SymbolsError::Hidden);
        }
        give_room(&addresses, found.values_mut().flatten());
        let owned = |(name, symbols): (&str, _)| (name.to_owned(), symbols);
        Ok(Symbols(found.into_iter().map(owned).collect()))
    }

    /// All symbols of that name, if it was asked for.
    pub(crate) fn all(&self, name: &str) -> &[Symbol] {
        self.0.get(name).map_or(&[], Vec::as_slice)
    }

    /// Whether code of that name is in the kernel: not inlined, and its module loaded.
    pub fn has_function(&self, name: &str) -> bool {
        self.all(name).iter().any(Symbol::is_function)
    }

    /// The one symbol of that name in `module`, or in the kernel proper where the
    /// module is built in.
    pub(crate) fn in_module(
        &self,
        name: &str,
        module: &'static str,
    ) -> Result<&Symbol, SymbolsError> {
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
}

/// Sets the distance of each symbol to the next one of all `addresses`.
fn give_room<'a>(addresses: &[u64], symbols: impl Iterator<Item = &'a mut Symbol>) {
    let mut symbols: Vec<&mut Symbol> = symbols.collect();
    symbols.sort_unstable_by_key(|symbol| symbol.address);
    let mut starts: Vec<u64> = symbols.iter().map(|symbol| symbol.address).collect();
    starts.dedup();
    let mut next: Vec<Option<u64>> = (1..=starts.len()).map(|n| starts.get(n).copied()).collect();
    for &address in addresses {
        let Some(before) = starts.partition_point(|&s| s < address).checked_sub(1) else {
            continue;
        };
        if next[before].is_none_or(|next| address < next) {
            next[before] = Some(address);
        }
    }
    for symbol in symbols {
        let own = starts.partition_point(|&s| s < symbol.address);
        symbol.room = next[own].map(|next| next - symbol.address);
    }
}

/// One of some 150,000 lines, few of which are wanted, so nothing is copied.
struct Line<'a> {
    address: u64,
    kind: u8,
    name: &'a [u8],
    /// With its brackets.
    module: Option<&'a [u8]>,
}

impl<'a> Line<'a> {
    /// `ADDRESS KIND NAME`, and for a module's symbol a tab and `[MODULE]`.
    fn parse(line: &'a [u8]) -> Option<Self> {
        let (digits, rest) = line.split_at_checked(memchr::memchr(b' ', line)?)?;
        let &[_, kind, b' ', ref rest @ ..] = rest else {
            return None;
        };
        let rest = rest.trim_ascii_end();
        let (name, module) = match memchr::memchr(b'\t', rest) {
            Some(tab) => (&rest[..tab], Some(&rest[tab + 1..])),
            None => (rest, None),
        };
        let mut address = 0;
        for &digit in digits {
            let digit = char::from(digit).to_digit(16)?;
            address = address << 4 | u64::from(digit);
        }
        Some(Line {
            address,
            kind,
            name,
            module,
        })
    }

    fn symbol(&self) -> Symbol {
        let module = self.module.map(String::from_utf8_lossy);
        Symbol {
            address: self.address,
            kind: self.kind.into(),
            module: module.map(|module| module.trim_matches(['[', ']']).to_owned()),
            room: None,
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
        assert_eq!(files.room, Some(1024));
        assert!(symbols.has_function("nlmsvc_lock"));
        assert!(!symbols.has_function("nlm_files"));
        assert!(symbols.all("nlmsvc_timeout").is_empty());
    }

    #[test]
    fn room_ends_at_the_next_symbol_wherever_it_is_listed() {
        let text = "3000 d third\n1000 d first\n1000 d alias\n2000 d second\n";
        let names = ["first", "alias", "third", "absent"];
        let symbols = Symbols::parse(text.as_bytes(), names).unwrap();
        let room = |name| symbols.all(name).first().map(|symbol| symbol.room);
        assert_eq!(room("first"), Some(Some(0x1000)));
        assert_eq!(room("alias"), Some(Some(0x1000)));
        assert_eq!(room("third"), Some(None));
        assert_eq!(room("absent"), None);
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
