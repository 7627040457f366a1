//! Prototypes of the kernel's functions, for the contracts that probes rely on.

use std::fmt;

use super::{Btf, Kind, MAX_CHAIN, word};

/// A function's parameters, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prototype {
    pub name: String,
    pub returns: String,
    pub parameters: Vec<Parameter>,
}

/// A parameter of a kernel function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameter {
    /// Empty where the kernel's BTF does not tell.
    pub name: String,
    /// As C writes it, e.g. `const struct nlm_host *`.
    pub of_type: String,
}

impl fmt::Display for Prototype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let declare = |of_type: &str, name: &str| match of_type.ends_with('*') || name.is_empty() {
            true => format!("{of_type}{name}"),
            false => format!("{of_type} {name}"),
        };
        let parameters: Vec<String> = self
            .parameters
            .iter()
            .map(|p| declare(&p.of_type, &p.name))
            .collect();
        let list = if parameters.is_empty() {
            "void".into()
        } else {
            parameters.join(", ")
        };
        write!(f, "{}({list})", declare(&self.returns, &self.name))
    }
}

impl Btf {
    pub(super) fn own_function(&self, name: &str) -> Option<Prototype> {
        let own = self.functions.find(self, name).next()?;
        let function = self.ty(own)?;
        let proto = self.ty(function.size_or_type)?;
        let parameters = proto.words().map(|[name, id]| Parameter {
            name: self.string(name).unwrap_or_default().to_owned(),
            // The kernel writes `...` as a nameless parameter of type void.
            of_type: if id == 0 {
                "...".into()
            } else {
                self.type_text(id, 0)
            },
        });
        Some(Prototype {
            name: name.to_owned(),
            returns: self.type_text(proto.size_or_type, 0),
            parameters: parameters.collect(),
        })
    }

    fn type_text(&self, id: u32, depth: usize) -> String {
        let Some(ty) = self.ty(id).filter(|_| depth < MAX_CHAIN) else {
            return "?".into();
        };
        let inner = |id| self.type_text(id, depth + 1);
        match ty.kind {
            Kind::Ptr => match inner(ty.size_or_type) {
                pointer if pointer.ends_with('*') => pointer + "*",
                other => other + " *",
            },
            // C writes the const of a pointer behind its star.
            Kind::Const => match inner(ty.size_or_type) {
                pointer if pointer.ends_with('*') => pointer + "const",
                other => format!("const {other}"),
            },
            Kind::Qualifier => inner(ty.size_or_type),
            Kind::Struct => format!("struct {}", ty.name),
            Kind::Fwd if !ty.kind_flag => format!("struct {}", ty.name),
            Kind::Union | Kind::Fwd => format!("union {}", ty.name),
            Kind::Enum | Kind::Enum64 => format!("enum {}", ty.name),
            Kind::Array => format!("{}[{}]", inner(word(ty.tail, 0)), word(ty.tail, 8)),
            Kind::FuncProto => {
                let list: Vec<String> = ty.words().map(|[_, id]| inner(id)).collect();
                format!("{} ({})", inner(ty.size_or_type), list.join(", "))
            }
            _ => ty.name.to_owned(),
        }
    }
}
