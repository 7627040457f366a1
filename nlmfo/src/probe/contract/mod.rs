//! The contracts of the eBPF programs: what each says of the kernel function that it
//! sits on, compared with what a kernel's BTF says.
//!
//! An argument is read by its place, and a place that has moved is not an error to the
//! kernel: the program reads something else. So names and types are compared, letter
//! by letter. What is written above the programs is compiled in with their sources.

mod comment;

use std::collections::BTreeMap;
use std::fmt;

pub use comment::Contract;
pub(crate) use comment::{CommentError, Hook, Series, Signature, read};

use crate::grace::gate;
use crate::kernel::btf::KernelBtf;
use crate::kernel::layout::LayoutError;
use crate::kernel::symbols::Symbols;
use crate::kernel::{gate_layout, layout, sockets_layout, state_layout, unlock_layout};
use crate::observe::programs;

/// The modules whose functions and structs are checked. `nfs` has none that are probed, but a function
/// with the same name there could not be probed by name.
pub const MODULES: [&str; 5] = ["grace", "lockd", "nfs", "nfsd", "sunrpc"];

macro_rules! sources {
    ($($file:literal),* $(,)?) => {
        /// The sources that hold programs, by their path in the workspace.
        pub const SOURCES: &[(&str, &str)] = &[$((
            concat!("nlmfo-ebpf/src/", $file),
            include_str!(concat!("../../../../nlmfo-ebpf/src/", $file)),
        )),*];
    };
}

sources!(
    "gate/audit.rs",
    "gate/classifier.rs",
    "gate/guard.rs",
    "gate/kernel.rs",
    "gate/ports.rs",
    "lock_list.rs",
    "lock_path.rs",
    "monitor.rs",
    "nfs4_path.rs",
    "release_path.rs",
    "snapshot.rs",
    "sockets/walk.rs",
    "states.rs",
    "unlock_path.rs",
);

/// The contracts of all programs, or what is wrong with one.
///
/// # Errors
/// If a program has no contract, or one in another form.
pub fn all() -> Result<Vec<Contract>, CommentError> {
    (SOURCES.iter())
        .flat_map(|(file, source)| read(file, source))
        .collect()
}

/// The symbols that [`check`] wants to know of.
pub fn symbols() -> impl Iterator<Item = &'static str> {
    layout::OBJECTS
        .into_iter()
        .chain(state_layout::OBJECTS)
        .chain([gate_layout::GRACE_NET_ID, sockets_layout::SERVICE])
}

/// Something that a kernel does not have as nlmfo relies on it.
#[derive(Debug)]
pub enum Mismatch {
    /// The prototype is another one.
    Prototype {
        /// Name of the kernel function.
        function: String,
        /// The program that is attached to it.
        program: String,
        /// File and line of the comment.
        place: String,
        /// The prototype that its comment states.
        comment: String,
        /// What the kernel has, and whose it is; empty if it has no such function, or
        /// has it only inlined.
        btf: Vec<(String, String)>,
    },
    /// A field or an object of the kernel.
    Layout(LayoutError),
    /// nlmfo attaches the program to another function than its comment says.
    Attached {
        /// Name of the program.
        program: String,
        /// The function that its comment names; none for a program of another kind.
        comment: Option<String>,
        /// The function that nlmfo attaches it to, if any.
        attached: Option<String>,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = || "no kernel function".to_owned();
        match self {
            Mismatch::Prototype {
                function,
                program,
                place,
                comment,
                btf,
            } => {
                write!(f, "{function}, of the program {program} ({place})")?;
                write!(f, "\n  comment: {comment}")?;
                for (whose, prototype) in btf {
                    write!(f, "\n  BTF:     {prototype} [{whose}]")?;
                }
                match btf.is_empty() {
                    true => f.write_str("\n  BTF:     no such function, or only inlined"),
                    false => Ok(()),
                }
            }
            Mismatch::Layout(error) => error.fmt(f),
            Mismatch::Attached {
                program,
                comment,
                attached,
            } => write!(
                f,
                "the program {program}: its comment says {}, nlmfo attaches it to {}",
                comment.clone().unwrap_or_else(none),
                attached.clone().unwrap_or_else(none)
            ),
        }
    }
}

/// The result for one kernel.
#[derive(Debug, Default)]
pub struct Checked {
    /// Functions that are as the comments say, without repetition.
    pub functions: usize,
    /// The contracts that hold, though the kernel's series is not among those on which
    /// they were seen to: the program's names.
    pub unseen: Vec<String>,
    /// What differs on this kernel.
    pub mismatches: Vec<Mismatch>,
}

/// Compares the contracts, and all that [`layout`], [`gate_layout`] and [`state_layout`] ask
/// for, with a kernel. `btf` must have been asked for [`MODULES`], `symbols` for [`symbols`].
pub fn check(contracts: &[Contract], btf: &KernelBtf, symbols: &Symbols, release: &str) -> Checked {
    let series = Series::of_release(release);
    let mut checked = Checked::default();
    let mut functions: Vec<&str> = Vec::new();
    for contract in contracts {
        let Hook::Function(signatures) = &contract.hook else {
            continue;
        };
        let signature = signature_on(signatures, series);
        let function = signature.function();
        let found: Vec<(String, String)> = (btf.functions(function).into_iter())
            .map(|(whose, prototype)| (whose.to_owned(), prototype.to_string()))
            .collect();
        match &found[..] {
            [(_, prototype)] if holds(&signature.prototype, prototype) => {
                functions.push(function);
                if !series.is_some_and(|series| signature.seen.contains(&series)) {
                    checked.unseen.push(contract.program.clone());
                }
            }
            _ => checked.mismatches.push(Mismatch::Prototype {
                function: function.to_owned(),
                program: contract.program.clone(),
                place: contract.place.clone(),
                comment: signature.prototype.clone(),
                btf: found,
            }),
        }
    }
    functions.sort_unstable();
    functions.dedup();
    checked.functions = functions.len();
    // Asks for the common layout, too.
    let layouts = [
        gate_layout::fill(btf, symbols, release).err(),
        sockets_layout::fill(btf, symbols, release).err(),
        state_layout::fill(btf, symbols, release).err(),
        unlock_layout::nfs3(btf, release).err(),
        unlock_layout::nfs4(btf, release).err(),
    ];
    let mismatches = layouts.into_iter().flatten().map(Mismatch::Layout);
    checked.mismatches.extend(mismatches);
    checked
}

/// Whether the comment of each program names the function that nlmfo attaches it to. Needs no kernel.
pub fn attached_as_said(contracts: &[Contract]) -> Vec<Mismatch> {
    let mut attached: BTreeMap<&str, &str> = programs::probes().chain(gate::probes()).collect();
    let mut mismatches = Vec::new();
    for contract in contracts {
        let attached = attached.remove(contract.program.as_str());
        let said = match &contract.hook {
            Hook::Function(signatures) => signatures.first().map(Signature::function),
            Hook::Elsewhere(_) => None,
        };
        if said != attached {
            mismatches.push(Mismatch::Attached {
                program: contract.program.clone(),
                comment: said.map(str::to_owned),
                attached: attached.map(str::to_owned),
            });
        }
    }
    let without_comment = attached
        .into_iter()
        .map(|(program, function)| Mismatch::Attached {
            program: program.to_owned(),
            comment: None,
            attached: Some(function.to_owned()),
        });
    mismatches.extend(without_comment);
    mismatches
}

/// The signature that a kernel of this series should have: it holds from the first
/// series on which it was seen up to that of the next one. Of a kernel older than all
/// the first one is expected, of one without a number the last.
fn signature_on(signatures: &[Signature], series: Option<Series>) -> &Signature {
    let begun = |signature: &&Signature| match (signature.seen.first(), series) {
        (Some(first), Some(series)) => *first <= series,
        _ => true,
    };
    (signatures.iter().rev().find(begun)).unwrap_or(&signatures[0])
}

/// Whether a comment's prototype and the kernel's are the same, but for `const`: it comes and goes
/// (6.12.118), and programs only read.
fn holds(comment: &str, btf: &str) -> bool {
    let [comment, btf] = [comment, btf].map(|prototype| prototype.replace("const ", ""));
    match comment.strip_suffix("(...)") {
        Some(head) => btf.split('(').next() == Some(head),
        None => comment == btf,
    }
}

#[cfg(test)]
mod tests;
