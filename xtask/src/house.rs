//! The rooms of `nlmfo/src`, each a file or folder of it, and which of them may use which:
//! a lower room never knows a higher one.
//!
//! The sources are read as tokens: `crate::ROOM` anywhere, also in a `use` tree, is an
//! arrow from the file's room to ROOM. Tests within the sources count too.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// What every room may use: modules that use no room and know nothing of the kernel.
const GROUND: &[&str] = &["causes", "exit", "foreign", "interrupt", "runtime", "times"];

/// Each room and what it may use besides [`GROUND`] and itself, lowest first.
const ROOMS: &[(&str, &[&str])] = &[
    ("causes", &[]),
    ("exit", &[]),
    ("foreign", &[]),
    ("interrupt", &[]),
    ("runtime", &[]),
    ("times", &[]),
    ("output", &[]),
    ("rpc", &[]),
    ("kernel", &[]),
    ("files", &["kernel"]),
    ("testbed", &["files", "kernel", "output", "rpc"]),
    ("observe", &["kernel", "rpc"]),
    ("release", &["files", "kernel", "observe", "rpc"]),
    ("grace", &["files", "kernel", "observe", "rpc"]),
    ("notify", &["files", "kernel", "observe", "rpc"]),
    ("server", &["files", "kernel", "observe", "rpc"]),
    (
        "failover",
        &[
            "grace", "files", "kernel", "notify", "observe", "output", "release", "rpc", "server",
        ],
    ),
    ("ticks", &["grace", "files", "kernel", "notify", "observe"]),
    ("metrics", &["files", "kernel", "observe", "ticks"]),
    (
        "ui",
        &["files", "grace", "kernel", "observe", "output", "ticks"],
    ),
    (
        "probe",
        &[
            "grace", "files", "kernel", "observe", "output", "release", "rpc", "testbed",
        ],
    ),
    (
        "cli",
        &["grace", "files", "kernel", "notify", "server", "testbed"],
    ),
    (
        "commands",
        &[
            "cli", "failover", "grace", "files", "kernel", "metrics", "notify", "observe",
            "output", "probe", "release", "rpc", "server", "testbed", "ticks", "ui",
        ],
    ),
];

/// Rooms that may name aya.
const AYA: &[&str] = &["grace", "observe"];

/// Rooms that may name a path under `/proc` or `/sys`. The testbed mounts and writes
/// those of the namespaces that it makes; the probe checks these very files.
const KERNEL_PATHS: &[&str] = &["kernel", "probe", "testbed"];

/// Known exceptions: the room of the file, and what it uses.
const EXCEPTIONS: &[(&str, &str)] = &[];

struct Source {
    /// From `nlmfo/src`.
    path: PathBuf,
    room: String,
    tokens: TokenStream,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../nlmfo/src");
    let mut folders = vec![root.clone()];
    let mut sources = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let file = entry.unwrap().path();
            if file.is_dir() {
                folders.push(file);
                continue;
            }
            let path = file.strip_prefix(&root).unwrap().to_owned();
            let is_source = path.extension().is_some_and(|ending| ending == "rs");
            let first = path.iter().next().unwrap().to_str().unwrap();
            let room = first.trim_end_matches(".rs").to_owned();
            if !is_source || matches!(&*room, "lib" | "main") {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            let tokens = TokenStream::from_str(&text);
            sources.push(Source {
                tokens: tokens.unwrap_or_else(|error| panic!("{}: {error}", path.display())),
                path,
                room,
            });
        }
    }
    sources
}

/// Calls `see` with each run of tokens that are side by side.
fn runs(tokens: &TokenStream, see: &mut impl FnMut(&[TokenTree])) {
    let run: Vec<TokenTree> = tokens.clone().into_iter().collect();
    see(&run);
    for token in &run {
        if let TokenTree::Group(group) = token {
            runs(&group.stream(), see);
        }
    }
}

fn is(token: &TokenTree, text: &str) -> bool {
    matches!(token, TokenTree::Ident(ident) if ident == text)
}

fn is_colons(tokens: &[TokenTree]) -> bool {
    let is_colon = |token: &TokenTree| matches!(token, TokenTree::Punct(p) if p.as_char() == ':');
    tokens.len() == 2 && tokens.iter().all(is_colon)
}

/// The first names of what is used as `ROOT::…` or `ROOT::{…, …}`.
fn used(tokens: &TokenStream, root: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    runs(tokens, &mut |run| {
        for window in run.windows(4) {
            if !is(&window[0], root) || !is_colons(&window[1..3]) {
                continue;
            }
            match &window[3] {
                TokenTree::Ident(ident) => {
                    names.insert(ident.to_string());
                }
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => {
                    let mut is_first = true;
                    for token in group.stream() {
                        match &token {
                            TokenTree::Ident(ident) if is_first => {
                                names.insert(ident.to_string());
                                is_first = false;
                            }
                            TokenTree::Punct(punct) if punct.as_char() == ',' => is_first = true,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
    });
    names
}

/// Paths under `/proc` and `/sys`, as literals without white space: texts name them, too.
/// What tests compare with (`mod tests { … }`) is left out.
fn kernel_paths(tokens: &TokenStream) -> BTreeSet<String> {
    let mut paths = BTreeSet::new();
    let is_tests = |window: &[TokenTree]| is(&window[0], "mod") && is(&window[1], "tests");
    let all: Vec<TokenTree> = tokens.clone().into_iter().collect();
    let end = (all.windows(2).position(is_tests)).unwrap_or(all.len());
    let tokens: TokenStream = all.into_iter().take(end).collect();
    runs(&tokens, &mut |run| {
        for (at, token) in run.iter().enumerate() {
            let TokenTree::Literal(literal) = token else {
                continue;
            };
            let text = literal.to_string();
            let path = text.trim_start_matches(['b', 'c']).trim_matches('"');
            let is_below = ["/proc", "/sys"].iter().any(|root| {
                path.strip_prefix(root)
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            });
            // A comment is `#[doc = "…"]` among the tokens.
            let is_comment = at >= 2 && is(&run[at - 2], "doc");
            if is_below && !is_comment && !path.contains(char::is_whitespace) {
                paths.insert(path.to_owned());
            }
        }
    });
    paths
}

#[test]
fn no_arrow_against_the_house() {
    let (mut wrong, mut met) = (Vec::new(), BTreeSet::new());
    for source in sources() {
        let allowed = ROOMS.iter().find(|(room, _)| *room == source.room);
        let Some((_, allowed)) = allowed else {
            panic!("{}: no such room", source.path.display());
        };
        for name in used(&source.tokens, "crate") {
            if name == source.room || GROUND.contains(&&*name) || allowed.contains(&&*name) {
                continue;
            }
            let exception = (EXCEPTIONS.iter()).find(|one| **one == (&*source.room, &*name));
            match exception {
                Some(exception) => {
                    met.insert(*exception);
                }
                None => wrong.push(format!("{} → {name}", source.path.display())),
            }
        }
    }
    assert!(wrong.is_empty(), "arrows against the house: {wrong:#?}");
    let stale = EXCEPTIONS.iter().filter(|one| !met.contains(*one));
    let stale: Vec<_> = stale.collect();
    assert!(stale.is_empty(), "no longer exceptions: {stale:?}");
}

#[test]
fn only_observe_and_grace_know_aya() {
    let mut wrong = Vec::new();
    for source in sources() {
        let names_aya = !used(&source.tokens, "aya").is_empty();
        if names_aya && !AYA.contains(&&*source.room) {
            wrong.push(source.path.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "these name aya: {wrong:#?}");
}

#[test]
fn only_kernel_knows_paths_of_the_kernel() {
    let mut wrong = Vec::new();
    for source in sources() {
        let paths = kernel_paths(&source.tokens);
        if !paths.is_empty() && !KERNEL_PATHS.contains(&&*source.room) {
            wrong.push(format!("{}: {paths:?}", source.path.display()));
        }
    }
    assert!(
        wrong.is_empty(),
        "these name the kernel's paths: {wrong:#?}"
    );
}

#[test]
fn arrows_are_seen_wherever_they_are() {
    let text = r#"
        //! [`crate::comment`](crate::comment) is none.
        use crate::{alpha::A, beta::{self, B}};
        use crate::gamma::{C, D as E};
        fn f() { let x = crate::delta::g(format!("{}", crate::epsilon::H)); }
        /// `/proc/comment`
        const PATH: &str = "/proc/locks";
        const TEXT: &str = "/proc/locks is read";
        const TWO: &str = "the file\n/sys/x";
        #[cfg(test)]
        mod tests { const MADE_UP: &str = "/proc/made-up"; }
    "#;
    let tokens = TokenStream::from_str(text).unwrap();
    let names: Vec<String> = used(&tokens, "crate").into_iter().collect();
    assert_eq!(names, ["alpha", "beta", "delta", "epsilon", "gamma"]);
    let paths: Vec<String> = kernel_paths(&tokens).into_iter().collect();
    assert_eq!(paths, ["/proc/locks"]);
}
