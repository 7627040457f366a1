//! Reads the contracts out of the eBPF programs' sources; the form is documented in
//! `nlmfo-ebpf/src/lib.rs`.

use std::fmt;
use std::str::FromStr;

/// What one program relies on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contract {
    /// The program's name in the object.
    pub program: String,
    /// File and line of the program.
    pub place: String,
    /// What the program is attached to.
    pub hook: Hook,
    /// The thread that runs it and the locks that it holds, as text.
    pub context: String,
}

/// What a program is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hook {
    /// A kernel function; the prototype that it had first comes first.
    Function(Vec<Signature>),
    /// No kernel function, as text.
    Elsewhere(String),
}

/// A prototype, and the kernels on which it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// In the form that [`super::super::btf::Prototype`] has as text; `(...)` in place
    /// of the parameters if the program reads none of them.
    pub prototype: String,
    /// Ascending, at least one.
    pub seen: Vec<Series>,
}

impl Signature {
    /// What the comment says on the function's name.
    pub fn function(&self) -> &str {
        let head = self.prototype.split('(').next().unwrap_or_default();
        head.rsplit([' ', '*']).next().unwrap_or_default()
    }
}

/// The names of a comment's entries.
const KEYS: [&str; 4] = ["kernel", "seen", "hook", "context"];

/// The first two numbers of a kernel's release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series(pub u32, pub u32);

impl Series {
    /// Of `6.12.107+deb13-cloud-amd64`, for example.
    pub fn of_release(release: &str) -> Option<Self> {
        let (major, rest) = release.split_once('.')?;
        let end = rest.find(|c: char| !c.is_ascii_digit());
        let minor = &rest[..end.unwrap_or(rest.len())];
        Some(Series(major.parse().ok()?, minor.parse().ok()?))
    }
}

impl FromStr for Series {
    type Err = ();

    /// `6.12`, with nothing after it.
    fn from_str(text: &str) -> Result<Self, ()> {
        let series = Series::of_release(text).ok_or(())?;
        (series.to_string() == text).then_some(series).ok_or(())
    }
}

impl fmt::Display for Series {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

/// A program whose contract is missing or malformed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: the contract of the program {program}: {problem}")]
pub struct CommentError {
    pub place: String,
    pub program: String,
    pub problem: String,
}

/// The programs of one source file, each with its contract or what is wrong with it.
/// `file` is for the places.
pub fn read(file: &str, source: &str) -> Vec<Result<Contract, CommentError>> {
    let lines: Vec<&str> = source.lines().map(str::trim).collect();
    let kinds = imported_kinds(source);
    let mut contracts = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let attribute = line.strip_prefix("#[").and_then(|l| l.strip_suffix(']'));
        let attribute = attribute.map(|a| a.split('(').next().unwrap_or(a));
        let Some(kind) = attribute.filter(|a| kinds.contains(a)) else {
            continue;
        };
        let above = lines[..at].iter().rposition(|line| !line.starts_with("//"));
        let comment = &lines[above.map_or(0, |above| above + 1)..at];
        let place = format!("{file}:{}", at + 1);
        let program = program_name(&lines[at..]).unwrap_or("(without a name)");
        let contract = parse(kind, comment)
            .map(|(hook, context)| Contract {
                program: program.to_owned(),
                place: place.clone(),
                hook,
                context,
            })
            .map_err(|problem| CommentError {
                place,
                program: program.to_owned(),
                problem,
            });
        contracts.push(contract);
    }
    contracts
}

/// The attributes that make a function a program: the macros of aya that the file
/// imports, but `map`.
fn imported_kinds(source: &str) -> Vec<&str> {
    const FROM: &str = "use aya_ebpf::macros::";
    (source.split(FROM).skip(1))
        .filter_map(|rest| rest.split(';').next())
        .flat_map(|names| names.split(['{', '}', ',']))
        .map(str::trim)
        .filter(|name| !name.is_empty() && *name != "map")
        .collect()
}

fn program_name<'a>(lines: &[&'a str]) -> Option<&'a str> {
    let function = lines.iter().find_map(|line| line.split_once("fn "))?.1;
    function.split('(').next()
}

fn parse(kind: &str, comment: &[&str]) -> Result<(Hook, String), String> {
    let on_function = matches!(kind, "kprobe" | "kretprobe" | "fentry" | "fexit");
    let entries = entries(comment);
    let Some((("context", context), hooks)) = entries.split_last().map(|(l, r)| ((l.0, &l.1), r))
    else {
        return Err("its last entry is not `// context: …`".to_owned());
    };
    let mut signatures = Vec::new();
    let mut elsewhere = None;
    for pair in hooks.chunks(2) {
        match pair {
            [("kernel", prototype), ("seen", seen)] if on_function => {
                signatures.push(signature(kind, prototype, seen)?);
            }
            [("hook", hook), ("seen", list)] if !on_function && elsewhere.is_none() => {
                series(list)?;
                elsewhere = Some(hook.clone());
            }
            _ => {
                let wanted = if on_function { "kernel" } else { "hook" };
                return Err(format!(
                    "a {kind} wants `// {wanted}: …` and `// seen: …`, not `// {}: …`",
                    pair[0].0
                ));
            }
        }
    }
    let hook = match elsewhere {
        Some(hook) => Hook::Elsewhere(hook),
        None if signatures.is_empty() => return Err("it says nothing of its hook".to_owned()),
        None => Hook::Function(in_order(signatures)?),
    };
    Ok((hook, context.clone()))
}

/// The comment's entries, `KEY: VALUE` over one or more lines, up to an empty line.
fn entries<'a>(comment: &[&'a str]) -> Vec<(&'a str, String)> {
    let mut entries: Vec<(&str, String)> = Vec::new();
    for line in comment {
        // Doc comments are not part of the contract.
        let Some(text) = line.strip_prefix("// ") else {
            match *line {
                "//" => break,
                _ => continue,
            }
        };
        let entry = (text.split_once(": ")).filter(|(key, _)| KEYS.contains(key));
        match (entry, entries.last_mut()) {
            (Some((key, value)), _) => entries.push((key, value.to_owned())),
            (None, Some((_, value))) => *value += &format!(" {text}"),
            (None, None) => entries.push((text, String::new())),
        }
    }
    entries
}

fn signature(kind: &str, prototype: &str, seen: &str) -> Result<Signature, String> {
    let signature = Signature {
        prototype: prototype.to_owned(),
        seen: series(seen)?,
    };
    if signature.function().is_empty() || !prototype.ends_with(')') {
        return Err(format!("`{prototype}` is not a prototype"));
    }
    if prototype.ends_with("(...)") && !kind.contains("ret") && kind != "fexit" {
        return Err(format!(
            "`{prototype}` leaves out the parameters, which only a program on return may"
        ));
    }
    Ok(signature)
}

fn series(list: &str) -> Result<Vec<Series>, String> {
    let seen: Result<Vec<Series>, ()> = list.split(' ').map(str::parse).collect();
    let seen =
        seen.map_err(|()| format!("`seen: {list}` is not a list of series such as 6.1 6.12"))?;
    match seen.is_sorted_by(|a, b| a < b) {
        true => Ok(seen),
        false => Err(format!("`seen: {list}` is not in ascending order")),
    }
}

/// Signatures of one function, each from a newer kernel than the one before.
fn in_order(signatures: Vec<Signature>) -> Result<Vec<Signature>, String> {
    for pair in signatures.windows(2) {
        if pair[0].function() != pair[1].function() {
            return Err("its prototypes are of several functions".to_owned());
        }
        if pair[0].seen.last() >= pair[1].seen.first() {
            return Err("its prototypes are not in the order of the kernels".to_owned());
        }
    }
    Ok(signatures)
}

#[cfg(test)]
mod tests {
    use super::*;

    const USE: &str = "use aya_ebpf::macros::{kprobe, kretprobe, map, classifier};\n";

    fn only(source: &str) -> Result<Contract, CommentError> {
        let mut all = read("x.rs", &format!("{USE}{source}"));
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    fn problem(source: &str) -> String {
        only(source).unwrap_err().to_string()
    }

    #[test]
    fn a_contract_is_read_with_every_prototype() {
        let contract = only(
            "/// What it is for.
// kernel: int f(struct a *x)
// seen: 6.1 6.12
// kernel: int f(struct b *x)
// seen: 7.2
// context: process, or
// softirq
//
// seen: whatever stands here is for people
#[kprobe]
pub fn on_f(ctx: ProbeContext) -> u32 {",
        )
        .unwrap();
        let signature = |prototype: &str, seen: &[Series]| Signature {
            prototype: prototype.to_owned(),
            seen: seen.to_vec(),
        };
        assert_eq!(
            contract,
            Contract {
                program: "on_f".into(),
                place: "x.rs:11".into(),
                hook: Hook::Function(vec![
                    signature("int f(struct a *x)", &[Series(6, 1), Series(6, 12)]),
                    signature("int f(struct b *x)", &[Series(7, 2)]),
                ]),
                context: "process, or softirq".into(),
            }
        );
    }

    #[test]
    fn a_program_without_a_contract_is_an_error_and_a_map_is_no_program() {
        assert_eq!(
            problem("#[map]\nstatic M: u8;\n#[kprobe]\npub fn on_f(ctx: u8) {"),
            "x.rs:4: the contract of the program on_f: its last entry is not `// context: …`"
        );
        let what_it_is = "/// Only what it is for.\n#[classifier]\npub fn gate() {";
        assert!(problem(what_it_is).contains("the program gate"));
    }

    #[test]
    fn what_is_not_in_the_form_is_an_error() {
        let of = |comment: &str| problem(&format!("{comment}\n#[kprobe]\nfn p() {{"));
        let cases = [
            (
                "// kernel: int f(int x)\n// context: any",
                "and `// seen: …`",
            ),
            (
                "// hook: somewhere\n// seen: 6.1\n// context: any",
                "a kprobe wants `// kernel: …`",
            ),
            ("// context: any", "nothing of its hook"),
            (
                "// kernel: int f(int x)\n// seen: 6.1 (and more)\n// context: any",
                "is not a list of series",
            ),
            (
                "// kernel: int f(int x)\n// seen: 6.12 6.1\n// context: any",
                "not in ascending order",
            ),
            (
                "// kernel: int f\n// seen: 6.1\n// context: any",
                "is not a prototype",
            ),
            (
                "// kernel: int f(...)\n// seen: 6.1\n// context: any",
                "leaves out the parameters",
            ),
            (
                "// kernel: int f(int x)\n// seen: 6.12\n// kernel: int f(long x)\n// seen: 6.1\n// context: any",
                "not in the order of the kernels",
            ),
            (
                "// kernel: int f(int x)\n// seen: 6.1\n// kernel: int g(int x)\n// seen: 6.12\n// context: any",
                "of several functions",
            ),
        ];
        for (comment, expected) in cases {
            let said = of(comment);
            assert!(said.contains(expected), "{comment}\n{said}");
        }
    }

    #[test]
    fn a_program_on_return_may_leave_the_parameters_out() {
        let on_return = "// kernel: struct a *f(...)\n// seen: 6.1\n// context: any\n\
                         #[kretprobe]\nfn r() {";
        let Hook::Function(signatures) = only(on_return).unwrap().hook else {
            panic!("a kretprobe is on a function");
        };
        assert_eq!(signatures[0].function(), "f");
    }

    #[test]
    fn a_release_tells_its_series() {
        assert_eq!(
            Series::of_release("6.1.0-56-cloud-amd64"),
            Some(Series(6, 1))
        );
        assert_eq!(Series::of_release("7.3-rc1"), Some(Series(7, 3)));
        assert_eq!(Series::of_release("next"), None);
        assert!("6.1.2".parse::<Series>().is_err());
    }
}
