//! Man pages and completions for `cargo xtask package`, from the argument definitions.
//!
//! Argument: a directory. It gets `man/nlmfo.1`, a page for each command, and
//! `completions/{nlmfo.bash,_nlmfo,nlmfo.fish}`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};
use nlmfo::cli::Cli;
use nlmfo::cli::manual::{EXAMPLES, EXIT_STATUSES, FILES};
use nlmfo::cli::version::VERSION;

fn main() -> Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .context("usage: manuals FOLDER")?;
    let folder = PathBuf::from(folder);
    let (man, completions) = (folder.join("man"), folder.join("completions"));
    for folder in [&man, &completions] {
        fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let mut command = Cli::command().disable_help_subcommand(true);
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command.clone(), "nlmfo", &completions)?;
    }
    command.build();
    page(&command, &command, &man)?;
    for sub in shown(&command) {
        pages(&command, sub, &man)?;
    }
    Ok(())
}

fn shown(command: &Command) -> impl Iterator<Item = &Command> {
    command.get_subcommands().filter(|sub| !sub.is_hide_set())
}

/// The pages of a command and of its own commands.
fn pages(root: &Command, command: &Command, folder: &Path) -> Result<()> {
    page(root, command, folder)?;
    shown(command).try_for_each(|sub| pages(root, sub, folder))
}

fn page(root: &Command, command: &Command, folder: &Path) -> Result<()> {
    let name = page_name(command);
    // What the root's help says of exit statuses has a section here.
    let about = command.get_about().cloned().unwrap_or_default();
    let described = command
        .clone()
        .display_name(&name)
        .disable_version_flag(true)
        .long_about(about);
    let man = Man::new(described)
        .title(name.to_uppercase())
        .section("8")
        .source(format!("nlmfo {VERSION}"))
        .date("")
        .manual("System Administration");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if shown(command).next().is_some() {
        man.render_subcommands_section(&mut text)?;
    }
    rest(root, command, &name).to_writer(&mut text)?;
    let path = folder.join(format!("{name}.8"));
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))
}

fn page_name(command: &Command) -> String {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    name.replace(' ', "-")
}

/// Examples, exit statuses, files, other pages.
fn rest(root: &Command, command: &Command, name: &str) -> Roff {
    let mut roff = Roff::new();
    let path = command.get_bin_name().unwrap_or("nlmfo");
    let own = path.strip_prefix("nlmfo ").unwrap_or("");
    let examples: Vec<_> = match own {
        // The first of each command.
        "" => EXAMPLES.iter().map(|(_, examples)| examples[0]).collect(),
        _ => EXAMPLES
            .iter()
            .filter(|(name, _)| own == *name || own.starts_with(&format!("{name} ")))
            .flat_map(|(_, examples)| examples.iter().copied())
            .filter(|(line, _)| line.starts_with(path))
            .collect(),
    };
    if !examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]);
        for (line, does) in examples {
            roff.control("TP", []);
            roff.text([bold(format!("# {line}"))]);
            roff.text([roman(does)]);
        }
    }
    roff.control("SH", ["TIME"]);
    roff.text([roman(
        "TIME is a number of seconds (90, 0.5) or numbers with units (90s, 1m30s, 2h, 500ms), \
         greater than 0 and at most 24h.",
    )]);
    for (title, rows) in [("EXIT STATUS", EXIT_STATUSES), ("FILES", FILES)] {
        roff.control("SH", [title]);
        for (what, means) in rows {
            roff.control("TP", []);
            roff.text([bold(*what)]);
            roff.text([roman(*means)]);
        }
    }
    roff.control("SH", ["SEE ALSO"]);
    let pages = std::iter::once(root).chain(shown(root)).map(page_name);
    let pages: Vec<String> = pages.filter(|page| page != name).collect();
    let mut words = Vec::new();
    for page in pages {
        words.extend([bold(page), roman("(8), ")]);
    }
    words.extend([
        bold("rpc.statd"),
        roman("(8), "),
        bold("exportfs"),
        roman("(8)"),
    ]);
    roff.text(words);
    roff
}
