//! The comparison, and that no program of ours is left out of it.

use std::fs;
use std::path::Path;

use super::*;
use crate::kernel::btf::Btf;

fn signature(prototype: &str, seen: &[Series]) -> Signature {
    Signature {
        prototype: prototype.to_owned(),
        seen: seen.to_vec(),
    }
}

#[test]
fn a_prototype_holds_until_the_next_one_was_seen() {
    let signatures = [
        signature("old", &[Series(6, 1), Series(6, 12)]),
        signature("new", &[Series(7, 2)]),
    ];
    let on = |series| signature_on(&signatures, series).prototype.as_str();
    assert_eq!(on(Some(Series(6, 1))), "old");
    assert_eq!(on(Some(Series(6, 18))), "old");
    assert_eq!(on(Some(Series(7, 2))), "new");
    assert_eq!(on(Some(Series(7, 9))), "new");
    assert_eq!(on(Some(Series(5, 10))), "old");
    assert_eq!(on(None), "new");
}

#[test]
fn every_word_of_a_prototype_counts_but_const() {
    assert!(holds(
        "int f(int wait, int reclaim)",
        "int f(int wait, int reclaim)"
    ));
    assert!(!holds(
        "int f(int wait, int reclaim)",
        "int f(int reclaim, int wait)"
    ));
    assert!(!holds("int f(struct a *x)", "int f(struct b *x)"));
    assert!(holds("int f(const struct a *x)", "int f(struct a *x)"));
}

#[test]
fn a_program_on_return_is_compared_by_the_result_alone() {
    assert!(holds("__be32 f(...)", "__be32 f(int x)"));
    assert!(!holds("__be32 f(...)", "int f(int x)"));
    assert!(!holds("__be32 f(...)", "__be32 fg(int x)"));
}

#[test]
fn every_file_with_programs_is_read() {
    fn visit(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                visit(&path, found);
            } else if !read("", &fs::read_to_string(&path).unwrap()).is_empty() {
                found.push(path.display().to_string());
            }
        }
    }
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = Vec::new();
    visit(&workspace.join("nlmfo-ebpf/src"), &mut found);
    found.sort();
    let known: Vec<String> = (SOURCES.iter())
        .map(|(file, _)| workspace.join(file).display().to_string())
        .collect();
    assert_eq!(found, known);
}

#[test]
fn every_program_has_its_contract_and_sits_where_it_says() {
    let contracts = all().unwrap_or_else(|error| panic!("{error}"));
    let mismatches = attached_as_said(&contracts);
    assert!(mismatches.is_empty(), "{mismatches:?}");
}

#[test]
fn a_program_that_sits_elsewhere_is_named() {
    let mut contracts = all().unwrap();
    let unlock = contracts
        .iter_mut()
        .find(|c| c.program == "unlock")
        .unwrap();
    unlock.hook = Hook::Elsewhere("nowhere".into());
    contracts.retain(|contract| contract.program != "monitor");
    let said: Vec<String> = (attached_as_said(&contracts).iter())
        .map(Mismatch::to_string)
        .collect();
    assert_eq!(
        said,
        [
            "the program unlock: its comment says no kernel function, nlmfo attaches it to \
             nlmsvc_unlock",
            "the program monitor: its comment says no kernel function, nlmfo attaches it to \
             nsm_monitor",
        ]
    );
}

#[test]
fn a_mismatch_shows_both_sides() {
    let mismatch = Mismatch::Prototype {
        function: "f".into(),
        program: "on_f".into(),
        place: "x.rs:7".into(),
        comment: "int f(int x)".into(),
        btf: vec![("lockd".into(), "int f(long x)".into())],
    };
    assert_eq!(
        mismatch.to_string(),
        "f, of the program on_f (x.rs:7)\n  comment: int f(int x)\n  BTF:     int f(long x) [lockd]"
    );
}

#[test]
fn a_kernel_that_has_nothing_of_it_breaks_every_contract() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("vmlinux"), Btf::empty()).unwrap();
    let btf = KernelBtf::load_from(folder.path(), &MODULES).unwrap();
    let symbols = Symbols::parse(&b"ffffffff81000000 T _text\n"[..], symbols()).unwrap();
    let contracts = all().unwrap();
    let checked = check(&contracts, &btf, &symbols, "6.1.0-56-cloud-amd64");

    let on_functions = (contracts.iter()).filter(|c| matches!(c.hook, Hook::Function(_)));
    // And the fields of the gate, of lockd's sockets, of NFSv4's state, of UNLOCK and of LOCKU.
    assert_eq!(checked.mismatches.len(), on_functions.count() + 5);
    assert_eq!((checked.functions, checked.unseen.len()), (0, 0));
    let first = checked.mismatches[0].to_string();
    assert!(
        first.ends_with("BTF:     no such function, or only inlined"),
        "{first}"
    );
}
