//! Checks the dependencies: licences that are compatible with ours, sources that are crates.io or this
//! workspace, and no crate in two versions, except those that are listed here.
//!
//! A test on `cargo metadata` rather than `cargo deny`: that is a build of minutes for the
//! same answer, and advisories need a database of the day, which a check of this tree cannot
//! depend on.

use std::collections::{BTreeMap, BTreeSet};

use crate::crates::{self, Package};

const LICENCES: [&str; 7] = [
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Crates that are in the tree in two versions, and why.
const TWICE: [(&str, &str); 2] = [
    ("syn", "derive macros are moving from 2 to 3"),
    ("vte", "the tests' terminal is behind the progress bars"),
];

const SOURCE: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The crates that are built on the platforms that nlmfo runs on.
fn packages() -> Vec<Package> {
    crates::packages("x86_64-unknown-linux-gnu").unwrap()
}

/// Whether an SPDX expression leaves a choice that is allowed. `/` is an old "or".
fn is_allowed(licence: &str) -> bool {
    let licence = licence.replace('/', " OR ");
    licence.split(" AND ").all(|part| {
        let part = part.trim_matches(['(', ')']);
        (part.split(" OR ")).any(|one| LICENCES.contains(&one.trim()))
    })
}

#[test]
fn licences_and_sources_are_those_we_allow() {
    let mut wrong = Vec::new();
    for package in packages() {
        let is_fine = package.license.as_deref().is_some_and(is_allowed);
        let is_ours = package.source.is_none();
        if !is_fine || !(is_ours || package.source.as_deref() == Some(SOURCE)) {
            wrong.push(format!(
                "{} {}: {:?} from {:?}",
                package.name, package.version, package.license, package.source
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_crate_is_there_in_two_versions() {
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in packages() {
        let known = versions.entry(package.name).or_default();
        known.insert(package.version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    let twice: Vec<&str> = versions.keys().map(String::as_str).collect();
    assert_eq!(twice, TWICE.map(|(name, _)| name), "{versions:?}");
}

#[test]
fn a_licence_is_a_choice_or_several_at_once() {
    for allowed in [
        "MIT",
        "GPL-2.0 OR MIT",
        "Apache-2.0/MIT",
        "(MIT OR Apache-2.0) AND Unicode-3.0",
    ] {
        assert!(is_allowed(allowed), "{allowed}");
    }
    for other in ["GPL-2.0", "MIT AND GPL-2.0", ""] {
        assert!(!is_allowed(other), "{other}");
    }
}
