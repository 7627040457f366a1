//! The licences of what is linked into the program, as text for the packages.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    apt,
    arch::Arch,
    crates::{cargo, packages},
};

/// What is not in the list of crates.
const HEAD: &str = "\
# Software in nlmfo

The program nlmfo contains the crates below, the Rust standard library (MIT OR Apache-2.0,
Copyright The Rust Project Developers) and SQLite (public domain). Where a crate offers a choice
that includes the MIT licence, nlmfo uses it under the MIT licence.
";

/// A Markdown document: a list of crates with their licences, then the texts, each once.
pub fn text(arch: Arch) -> Result<String> {
    let triple = arch.triple();
    let linked = linked(&triple)?;
    let mut list = String::from(HEAD);
    // By text: the crates that have it.
    let mut texts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut packages = packages(&triple)?;
    packages.retain(|package| {
        package.source.is_some()
            && linked.contains(&(package.name.clone(), package.version.clone()))
    });
    ensure!(!packages.is_empty(), "no crate is linked into nlmfo");
    packages.sort_by(|one, other| (&one.name, &one.version).cmp(&(&other.name, &other.version)));
    list.push('\n');
    for package in &packages {
        let licence = package.license.as_deref().unwrap_or_default();
        let title = format!("{} {}", package.name, package.version);
        write!(list, "- {title}: {licence}")?;
        let folder = package.manifest_path.parent().unwrap_or(Path::new("/"));
        let found = licences(folder, licence)?;
        if found.is_empty() {
            // It has no licence text: the copyright is that of its authors.
            let authors = match (&package.authors[..], &package.repository) {
                ([], Some(repository)) => repository.clone(),
                (authors, _) => authors.join(", "),
            };
            write!(list, "; by {authors}")?;
        }
        list.push('\n');
        for text in found {
            texts.entry(text).or_default().insert(title.clone());
        }
    }
    for (text, crates) in &texts {
        let crates: Vec<&str> = crates.iter().map(String::as_str).collect();
        write!(list, "\n## {}\n\n{}\n", crates.join(", "), indented(text))?;
    }
    Ok(list)
}

/// Names and versions of the crates whose code is in the program, eBPF included.
fn linked(triple: &str) -> Result<BTreeSet<(String, String)>> {
    let mut tree = cargo(&["tree", "--locked", "--edges", "normal,no-proc-macro"]);
    tree.args(["--package", "nlmfo", "--package", "nlmfo-ebpf"])
        .args(["--prefix", "none", "--format", "{p}", "--target"])
        .arg(triple);
    let tree = apt::run(&mut tree)?;
    // `aya v0.14.1`
    let lines = tree.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, version) = (words.next()?, words.next()?.strip_prefix('v')?);
        Some((name.to_owned(), version.to_owned()))
    });
    Ok(lines.collect())
}

/// The licence texts in a crate's folder: of several by choice, the MIT licence.
fn licences(folder: &Path, licence: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let name = name.to_uppercase();
        if path.is_file() && is_licence(&name) {
            files.push((name, path));
        }
    }
    let is_choice = licence.contains(" OR ") || licence.contains('/');
    let has_mit = files.iter().any(|(name, _)| name.contains("MIT"));
    if is_choice && has_mit && licence.contains("MIT") {
        files.retain(|(name, _)| {
            ["MIT", "COPYRIGHT", "NOTICE"]
                .iter()
                .any(|word| name.contains(word))
        });
    }
    files.sort();
    let read = |(_, path): &(String, PathBuf)| {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        Ok(text.trim_end().replace("\r\n", "\n"))
    };
    files.iter().map(read).collect()
}

fn is_licence(name: &str) -> bool {
    let names = [
        "LICENSE",
        "LICENCE",
        "COPYING",
        "COPYRIGHT",
        "NOTICE",
        "UNLICENSE",
    ];
    names.iter().any(|start| name.starts_with(start))
}

/// As a block of Markdown.
fn indented(text: &str) -> String {
    let lines = text.lines().map(|line| match line.trim_end() {
        "" => "\n".to_owned(),
        line => format!("    {line}\n"),
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_choice_the_mit_licence_is_taken() -> Result<()> {
        let folder = tempfile::tempdir()?;
        for name in ["LICENSE-APACHE", "LICENSE-MIT", "NOTICE", "README.md"] {
            fs::write(folder.path().join(name), format!("{name}\r\ntext\n\n"))?;
        }
        let of = |licence: &str| licences(folder.path(), licence);
        assert_eq!(
            of("MIT OR Apache-2.0")?,
            ["LICENSE-MIT\ntext", "NOTICE\ntext"]
        );
        // Of licences that all hold, all texts.
        assert_eq!(of("MIT AND Apache-2.0")?.len(), 3);
        Ok(())
    }

    #[test]
    fn every_crate_is_listed_with_a_licence() -> Result<()> {
        let text = text(Arch::HERE)?;
        for word in [
            "- aya ",
            "- aya-ebpf ",
            "- rusqlite ",
            "- libsqlite3-sys ",
            "Permission is",
        ] {
            assert!(text.contains(word), "{word}");
        }
        let list = text.split("\n## ").next().unwrap_or_default();
        let bare = list
            .lines()
            .find(|line| line.ends_with(": ") || line.ends_with("; by "));
        assert_eq!(bare, None);
        Ok(())
    }
}
