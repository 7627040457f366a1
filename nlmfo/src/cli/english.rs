//! Keeps help and documents plain, as far as a machine can check that.

use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::{Command, CommandFactory};

use super::Cli;

/// The first word of each command's help: what the command does.
const VERBS: &[&str] = &[
    "Act", "Add", "Attach", "Bring", "Check", "Drop", "Edit", "End", "Find", "Keep", "List",
    "Move", "Notify", "Print", "Release", "Remove", "Restart", "Run", "Show", "Start", "Stop",
    "Test", "Wait",
];

/// First words of help that describes instead of telling what to do.
const WEAK: &[&str] = &[
    "Also", "How", "If", "Only", "The", "There", "Where", "Whether", "Which", "Who", "Whom", "Why",
];

/// Phrases that readers had to read twice.
const UNCLEAR: &[&str] = &[
    "at the most",
    "believes nobody",
    "come to its end",
    "count for nothing",
    "in all the time",
    "in mind",
    "is no address",
    "not to be had",
    "not whole",
    "serve nobody",
    "serves nobody",
    "so long as",
    "tells the truth",
    "told of",
    "what came of it",
    "whoever",
    "whom nobody",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The documents, by their paths in the repository.
fn documents() -> Vec<String> {
    let docs = fs::read_dir(root().join("docs")).unwrap();
    let docs = docs.map(|entry| format!("docs/{}", entry.unwrap().file_name().display()));
    let is_document = |path: &String| Path::new(path).extension().is_some_and(|end| end == "md");
    let mut documents: Vec<String> = docs.filter(is_document).collect();
    documents.extend(
        [
            "README.md",
            "CONTRIBUTING.md",
            "SECURITY.md",
            "CHANGELOG.md",
        ]
        .map(Into::into),
    );
    documents
}

/// Unclear phrases in a text, with where they are.
fn unclear(place: &str, text: &str) -> Vec<String> {
    let lower = text.to_lowercase();
    let words = lower.split_whitespace().collect::<Vec<_>>().join(" ");
    let found = UNCLEAR.iter().filter(|phrase| words.contains(*phrase));
    found.map(|phrase| format!("{place}: {phrase:?}")).collect()
}

/// Complaints about the help of a command, its options and its subcommands.
fn complaints(path: &str, command: &Command) -> Vec<String> {
    let mut found = Vec::new();
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    let verb = about.split([' ', ',']).next().unwrap_or_default();
    if !VERBS.contains(&verb) {
        found.push(format!(
            "{path}: {about:?} does not begin with a verb of the list"
        ));
    }
    found.extend(unclear(path, &about));
    for option in command
        .get_arguments()
        .filter(|option| !option.is_hide_set())
    {
        let place = format!("{path} {}", option.get_id());
        let help = option
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        let first = help.split(' ').next().unwrap_or_default();
        let is_capital = first.starts_with(|first: char| first.is_ascii_uppercase());
        if !is_capital || WEAK.contains(&first) || help.ends_with('.') {
            found.push(format!("{place}: {help:?}"));
        }
        found.extend(unclear(&place, &help));
    }
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
        found.extend(complaints(&format!("{path} {}", sub.get_name()), sub));
    }
    found
}

#[test]
fn help_is_plain() {
    let found = complaints("nlmfo", &Cli::command());
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn documents_are_plain() {
    let found: Vec<String> = (documents().iter())
        .flat_map(|path| unclear(path, &read(path)))
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_readme_fits_one_reading() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 200, "README.md has {lines} lines");
}

/// The commands of nlmfo in a document: lines of code, and code within a line.
fn commands(text: &str) -> Vec<String> {
    let is_command = |code: &&str| code.starts_with("nlmfo ");
    let mut found = Vec::new();
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(code) => {
                let code = code.strip_prefix("# ").unwrap_or(code);
                found.extend(Some(code).filter(is_command));
            }
            None => found.extend(line.split('`').skip(1).step_by(2).filter(is_command)),
        }
    }
    found.into_iter().map(str::to_owned).collect()
}

#[test]
fn commands_in_documents_are_right() {
    let mut count = 0;
    for path in documents() {
        for command in commands(&read(&path)) {
            let words = command.split_whitespace();
            // `A` stands for any address.
            let words = words.map(|word| if word == "A" { "192.0.2.1" } else { word });
            count += 1;
            let Err(error) = Cli::from_arguments(words.map(Into::into)) else {
                continue;
            };
            // A sentence need not repeat every required option.
            let is_known = matches!(
                error.kind(),
                ErrorKind::MissingRequiredArgument
                    | ErrorKind::DisplayHelp
                    | ErrorKind::DisplayVersion
                    | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
            );
            assert!(is_known, "{path}: {command}: {error}");
        }
    }
    assert!(count > 20, "only {count} commands were found");
}

#[test]
fn links_between_documents_lead_somewhere() {
    for path in documents() {
        let text = read(&path);
        for link in text.split("](").skip(1) {
            let target = link.split(')').next().unwrap_or_default();
            let file = target.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let folder = root().join(&path).parent().unwrap().to_owned();
            assert!(folder.join(file).exists(), "{path}: {target}");
        }
    }
}

#[test]
fn a_complaint_is_found() {
    let command = Command::new("nlmfo")
        .about("Who holds it")
        .arg(clap::Arg::new("x").long("x").help("How long at the most"));
    assert_eq!(complaints("nlmfo", &command).len(), 3);
    assert_eq!(
        commands("    # nlmfo check\nsee `nlmfo grace --list` or `ls`\n").len(),
        2
    );
}
