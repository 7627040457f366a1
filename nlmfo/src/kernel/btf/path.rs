//! From a path through structs to a field: its offset, size and length.

use super::{Btf, Kind, MAX_CHAIN, Type, word};

/// Why a path has no single result.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    #[error("`{path}` is not there: {reason}")]
    Missing { path: String, reason: String },
    #[error("`{path}` is ambiguous: structs of the same name put it at {}", places.join(" and at "))]
    Ambiguous { path: String, places: Vec<String> },
}

/// Where a path leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Field {
    /// Bytes from the start of the struct that the path's last `->` points to,
    /// or of the first struct where there is no `->`.
    pub offset: u32,
    /// Bytes of the whole field.
    pub size: u32,
    /// Elements, if the field is an array.
    pub elements: Option<u32>,
}

impl Btf {
    /// Finds the field at the end of `path`: `STRUCT.member`, then any number of
    /// `.member` (inside, also of anonymous structs and unions) and `->member`
    /// (through a pointer; offsets begin again). Several paths separated by ` | `
    /// are alternatives, the first that exists wins.
    ///
    /// Only full definitions count, forward declarations do not. Several structs
    /// of one name are fine as long as they agree on this field.
    pub(crate) fn field(&self, path: &str) -> Result<Field, FieldError> {
        let mut missing = Vec::new();
        for alternative in path.split('|').map(str::trim) {
            match self.one_field(alternative) {
                Err(FieldError::Missing { reason, .. }) => missing.push(reason),
                other => return other,
            }
        }
        Err(FieldError::Missing {
            path: path.to_owned(),
            reason: missing.join("; "),
        })
    }

    fn one_field(&self, path: &str) -> Result<Field, FieldError> {
        let missing = |reason: String| FieldError::Missing {
            path: path.to_owned(),
            reason,
        };
        let mut steps = Steps(path);
        let Some((_, first)) = steps.next() else {
            return Err(missing("the path is empty".into()));
        };
        // (bytes from the start of the struct, type there)
        let mut places: Vec<(u32, u32)> = self
            .structs_named(first)
            .into_iter()
            .map(|id| (0, id))
            .collect();
        if places.is_empty() {
            return Err(missing(format!("{} has no struct {first}", self.origin)));
        }
        let mut walked = first.to_owned();
        for (through_pointer, member) in steps {
            let mut next = Vec::new();
            for &(offset, id) in &places {
                let inside = match through_pointer {
                    true => self.pointees(id).into_iter().map(|id| (0, id)).collect(),
                    false => vec![(offset, id)],
                };
                for (offset, id) in inside {
                    next.extend(self.member(id, member, offset, 0));
                }
            }
            next.sort_unstable();
            next.dedup();
            if next.is_empty() {
                return Err(missing(format!("{walked} has no member {member}")));
            }
            walked += if through_pointer { "->" } else { "." };
            walked += member;
            places = next;
        }
        let mut fields: Vec<Field> = places
            .iter()
            .filter_map(|&(offset, id)| {
                let elements = match self.resolved(id)? {
                    Type {
                        kind: Kind::Array,
                        tail,
                        ..
                    } => Some(word(tail, 8)),
                    _ => None,
                };
                Some(Field {
                    offset,
                    size: self.size(id)?,
                    elements,
                })
            })
            .collect();
        fields.sort_unstable();
        fields.dedup();
        match fields[..] {
            [field] => Ok(field),
            [] => Err(missing(format!("the size of {walked} is not known"))),
            _ => Err(FieldError::Ambiguous {
                path: path.to_owned(),
                places: fields
                    .iter()
                    .map(|f| format!("byte {} with {} bytes", f.offset, f.size))
                    .collect(),
            }),
        }
    }

    fn structs_named(&self, name: &str) -> Vec<u32> {
        let mut found = self
            .base
            .as_ref()
            .map_or_else(Vec::new, |base| base.structs_named(name));
        found.extend(self.structs.find(self, name));
        found
    }

    /// The structs that a pointer of type `id` may point to: several only where
    /// its type is a forward declaration and there are several definitions.
    fn pointees(&self, id: u32) -> Vec<u32> {
        let target = self
            .resolved(id)
            .filter(|t| t.kind == Kind::Ptr)
            .and_then(|pointer| self.resolve(pointer.size_or_type));
        let Some(target) = target else {
            return Vec::new();
        };
        match self.ty(target) {
            Some(Type {
                kind: Kind::Fwd,
                name,
                ..
            }) => self.structs_named(name),
            _ => vec![target],
        }
    }

    /// (bytes, type) of the member, looked for in anonymous members too; `offset`
    /// is where type `id` itself lies. None for a bit field.
    fn member(&self, id: u32, name: &str, offset: u32, depth: usize) -> Option<(u32, u32)> {
        let ty = self
            .resolved(id)
            .filter(|t| matches!(t.kind, Kind::Struct | Kind::Union))?;
        for [member_name, member_type, place] in ty.words() {
            let (bits, bit_field) = match ty.kind_flag {
                true => (place & 0x00ff_ffff, place >> 24 != 0),
                false => (place, false),
            };
            let offset = offset.checked_add(bits / 8)?;
            match self.string(member_name)? {
                found if found == name => {
                    return (!bit_field && bits % 8 == 0).then_some((offset, member_type));
                }
                "" if depth < MAX_CHAIN => {
                    if let Some(found) = self.member(member_type, name, offset, depth + 1) {
                        return Some(found);
                    }
                }
                _ => {}
            }
        }
        None
    }
}

/// The steps of a path: whether one goes through a pointer, and the name.
struct Steps<'a>(&'a str);

impl<'a> Iterator for Steps<'a> {
    type Item = (bool, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let (through_pointer, rest) = match self.0.strip_prefix("->") {
            Some(rest) => (true, rest),
            None => (false, self.0.strip_prefix('.').unwrap_or(self.0)),
        };
        let end = rest.find(['.', '-']).unwrap_or(rest.len());
        self.0 = &rest[end..];
        Some((through_pointer, &rest[..end]))
    }
}
