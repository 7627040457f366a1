//! The running kernel's type information (BTF): where a field is, how long an
//! array is, what a function's prototype says.
//!
//! `/sys/kernel/btf/vmlinux` holds the types of the kernel proper, and
//! `/sys/kernel/btf/MODULE` those that only the module has ("split" BTF): its
//! type ids and string offsets go on where vmlinux's end. A module that is built
//! in has no file of its own, its types are vmlinux's. The format is that of
//! Documentation/bpf/btf.rst, read in the byte order of this machine.
//!
//! Fields are asked for by *path* from a struct whose name is stable, and never
//! by the name of a type in the middle: 7.2 renamed lockd's `struct nlm_lock` to
//! `lockd_lock` and gave the old name to another struct, while
//! `nlm_block.b_call->a_args.lock.fl` means the same in 6.1 and 7.3.

mod error;
mod names;
mod path;
mod prototype;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

pub(crate) use error::BtfError;
pub(crate) use path::{Field, FieldError};
pub(crate) use prototype::Prototype;

use names::Names;

/// Where the kernel shows it.
pub(crate) const FOLDER: &str = "/sys/kernel/btf";
const MAGIC: u16 = 0xeb9f;
const HEADER_LEN: usize = 24;
const TYPE_LEN: usize = 12;
/// A longer chain of typedefs and qualifiers is treated as a cycle.
const MAX_CHAIN: usize = 32;

/// vmlinux's types and those of the modules that were asked for.
#[derive(Debug)]
pub struct KernelBtf {
    vmlinux: Arc<Btf>,
    modules: BTreeMap<String, Arc<Btf>>,
}

impl KernelBtf {
    /// Reads vmlinux's BTF and, of `modules`, those that have a file of their own. The others are built
    /// in, or not loaded: looking up a path shows which.
    pub(crate) fn load(modules: &[&str]) -> Result<Self, BtfError> {
        Self::load_from(Path::new(FOLDER), modules)
    }

    /// The same from a directory in the form of `/sys/kernel/btf`, of any kernel.
    ///
    /// # Errors
    /// If vmlinux's file cannot be read, or one is malformed.
    pub fn load_from(folder: &Path, modules: &[&str]) -> Result<Self, BtfError> {
        let read = |name: &str| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| BtfError::Read { path, source })
        };
        let vmlinux = Btf::parse("vmlinux", read("vmlinux")?, None)?;
        let mut loaded = BTreeMap::new();
        for &module in modules {
            let data = match read(module) {
                Err(BtfError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                    continue;
                }
                other => other?,
            };
            let btf = Btf::parse(module, data, Some(Arc::clone(&vmlinux)))?;
            loaded.insert(module.to_owned(), btf);
        }
        Ok(KernelBtf {
            vmlinux,
            modules: loaded,
        })
    }

    /// What code in `module` sees: its own types on top of vmlinux's, or
    /// vmlinux's alone for a module that is built in.
    pub(crate) fn of(&self, module: &str) -> &Btf {
        self.modules.get(module).unwrap_or(&self.vmlinux)
    }

    /// Whether the module has type information of its own.
    pub(crate) fn has_module(&self, module: &str) -> bool {
        self.modules.contains_key(module)
    }

    pub(crate) fn vmlinux(&self) -> &Btf {
        &self.vmlinux
    }

    /// The prototypes of the functions of that name: vmlinux's and those of the modules
    /// that were asked for, each with whose it is.
    pub(crate) fn functions(&self, name: &str) -> Vec<(&str, Prototype)> {
        let vmlinux = [("vmlinux", &self.vmlinux)];
        let modules = self.modules.iter().map(|(name, btf)| (name.as_str(), btf));
        (vmlinux.into_iter().chain(modules))
            .filter_map(|(whose, btf)| Some((whose, btf.own_function(name)?)))
            .collect()
    }
}

/// One BTF blob, on top of its base.
#[derive(Debug)]
pub(crate) struct Btf {
    origin: String,
    base: Option<Arc<Btf>>,
    data: Vec<u8>,
    strings: Range<usize>,
    /// String offsets below this one are the base's.
    first_string: usize,
    /// Where each type record begins in `data`; the first is `first_id`.
    records: Vec<u32>,
    first_id: u32,
    structs: Names,
    functions: Names,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Void,
    Int,
    Ptr,
    Array,
    Struct,
    Union,
    Enum,
    Fwd,
    Func,
    FuncProto,
    Typedef,
    Const,
    /// `volatile`, `restrict` and type tags: they do not matter here.
    Qualifier,
    Var,
    DataSec,
    Float,
    DeclTag,
    Enum64,
}

impl Kind {
    /// The kind, and how many bytes follow its record of `vlen` entries.
    fn of(number: u32, vlen: usize) -> Option<(Kind, usize)> {
        Some(match number {
            1 => (Kind::Int, 4),
            2 => (Kind::Ptr, 0),
            3 => (Kind::Array, 12),
            4 => (Kind::Struct, 12 * vlen),
            5 => (Kind::Union, 12 * vlen),
            6 => (Kind::Enum, 8 * vlen),
            7 => (Kind::Fwd, 0),
            8 => (Kind::Typedef, 0),
            10 => (Kind::Const, 0),
            9 | 11 | 18 => (Kind::Qualifier, 0),
            12 => (Kind::Func, 0),
            13 => (Kind::FuncProto, 8 * vlen),
            14 => (Kind::Var, 4),
            15 => (Kind::DataSec, 12 * vlen),
            16 => (Kind::Float, 0),
            17 => (Kind::DeclTag, 4),
            19 => (Kind::Enum64, 12 * vlen),
            _ => return None,
        })
    }
}

#[derive(Clone, Copy)]
struct Type<'a> {
    name: &'a str,
    kind: Kind,
    /// Struct and union members have a bit field's size in their offset.
    kind_flag: bool,
    /// Bytes, or the id of another type, depending on the kind.
    size_or_type: u32,
    tail: &'a [u8],
}

impl Type<'_> {
    fn words<const N: usize>(&self) -> impl Iterator<Item = [u32; N]> {
        self.tail
            .chunks_exact(4 * N)
            .map(|chunk| std::array::from_fn(|i| word(chunk, 4 * i)))
    }
}

/// # Panics
/// If the four bytes are not there: callers have checked.
fn word(data: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(data[at..at + 4].try_into().expect("four bytes"))
}

impl Btf {
    /// Checks every record's bounds once, so that later lookups stay inside the blob. `origin` names it
    /// in errors.
    pub(crate) fn parse(
        origin: &str,
        data: Vec<u8>,
        base: Option<Arc<Btf>>,
    ) -> Result<Arc<Self>, BtfError> {
        let malformed = |problem| BtfError::Malformed {
            origin: origin.to_owned(),
            problem,
        };
        if data.len() < HEADER_LEN {
            return Err(malformed("it is shorter than its header"));
        }
        if u16::from_ne_bytes([data[0], data[1]]) != MAGIC || data[2] != 1 {
            return Err(malformed(
                "it does not begin with this machine's BTF version 1",
            ));
        }
        let header: [usize; 5] = std::array::from_fn(|i| word(&data, 4 + 4 * i) as usize);
        let [header_len, type_off, type_len, string_off, string_len] = header;
        let section = |offset: usize, len: usize| {
            let start = header_len.checked_add(offset)?;
            let end = start.checked_add(len)?;
            (header_len >= HEADER_LEN && end <= data.len()).then_some(start..end)
        };
        let types =
            section(type_off, type_len).ok_or_else(|| malformed("its types lie outside of it"))?;
        let strings = section(string_off, string_len)
            .ok_or_else(|| malformed("its strings lie outside of it"))?;

        let (first_id, first_string) = match &base {
            // Id 0 is void and has no record.
            None => (1, 0),
            Some(base) => (
                base.first_id + base.records.len() as u32,
                base.first_string + base.strings.len(),
            ),
        };
        let mut btf = Btf {
            origin: origin.to_owned(),
            base,
            strings,
            first_string,
            records: Vec::new(),
            first_id,
            structs: Names::default(),
            functions: Names::default(),
            data,
        };
        let mut at = types.start;
        while at < types.end {
            if types.end - at < TYPE_LEN {
                return Err(malformed("its last type is cut off"));
            }
            let info = word(&btf.data, at + 4);
            let (kind, tail_len) = Kind::of(info >> 24 & 0x1f, (info & 0xffff) as usize)
                .ok_or_else(|| {
                    malformed("it has a kind of type that this program does not know")
                })?;
            if types.end - at - TYPE_LEN < tail_len {
                return Err(malformed("its last type is cut off"));
            }
            let id = first_id + btf.records.len() as u32;
            match kind {
                Kind::Struct => btf.structs.push(id),
                Kind::Func => btf.functions.push(id),
                _ => {}
            }
            btf.records.push(at as u32);
            at += TYPE_LEN + tail_len;
        }
        Ok(Arc::new(btf))
    }

    fn string(&self, offset: u32) -> Option<&str> {
        let Some(own) = (offset as usize).checked_sub(self.first_string) else {
            return self.base.as_ref()?.string(offset);
        };
        let rest = self.data[self.strings.clone()].get(own..)?;
        let end = rest.iter().position(|&b| b == 0)?;
        str::from_utf8(&rest[..end]).ok()
    }

    /// The name's bytes of one of this blob's own types, and what follows them; nothing if it
    /// lies outside.
    fn rest_from_name(&self, own_id: u32) -> &[u8] {
        let at = self.records[(own_id - self.first_id) as usize] as usize;
        let offset = word(&self.data, at) as usize;
        match (offset.checked_sub(self.first_string), &self.base) {
            (Some(own), _) => self.data[self.strings.clone()].get(own..),
            (None, Some(base)) => base.data[base.strings.clone()].get(offset..),
            (None, None) => None,
        }
        .unwrap_or_default()
    }

    fn ty(&self, id: u32) -> Option<Type<'_>> {
        if id == 0 {
            let void = Type {
                name: "void",
                kind: Kind::Void,
                kind_flag: false,
                size_or_type: 0,
                tail: &[],
            };
            return Some(void);
        }
        let Some(own) = id.checked_sub(self.first_id) else {
            return self.base.as_ref()?.ty(id);
        };
        let at = *self.records.get(own as usize)? as usize;
        let info = word(&self.data, at + 4);
        let (kind, tail_len) = Kind::of(info >> 24 & 0x1f, (info & 0xffff) as usize)?;
        Some(Type {
            name: self.string(word(&self.data, at))?,
            kind,
            kind_flag: info >> 31 == 1,
            size_or_type: word(&self.data, at + 8),
            tail: &self.data[at + TYPE_LEN..at + TYPE_LEN + tail_len],
        })
    }

    /// The id of the type behind typedefs and qualifiers.
    fn resolve(&self, mut id: u32) -> Option<u32> {
        for _ in 0..MAX_CHAIN {
            let ty = self.ty(id)?;
            match ty.kind {
                Kind::Typedef | Kind::Const | Kind::Qualifier => id = ty.size_or_type,
                _ => return Some(id),
            }
        }
        None
    }

    fn resolved(&self, id: u32) -> Option<Type<'_>> {
        self.ty(self.resolve(id)?)
    }

    fn size(&self, id: u32) -> Option<u32> {
        let mut id = id;
        let mut times = 1u32;
        for _ in 0..MAX_CHAIN {
            let ty = self.resolved(id)?;
            match ty.kind {
                Kind::Ptr => return times.checked_mul(size_of::<usize>() as u32),
                Kind::Array => {
                    times = times.checked_mul(word(ty.tail, 8))?;
                    id = word(ty.tail, 0);
                }
                Kind::Int
                | Kind::Struct
                | Kind::Union
                | Kind::Enum
                | Kind::Enum64
                | Kind::Float => {
                    return times.checked_mul(ty.size_or_type);
                }
                _ => return None,
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
