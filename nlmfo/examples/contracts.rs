//! The comparison of `cargo xtask contracts`: what nlmfo uses against kernels that are not
//! running.
//!
//! Arguments in pairs: a kernel's release, and the directory that `xtask/src/lab/types.rs`
//! made of its files. Exit status 1 if anything differs.

use std::fs::File;
use std::io::BufReader;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use nlmfo::kernel::btf::KernelBtf;
use nlmfo::kernel::symbols::Symbols;
use nlmfo::probe::contract::{self, Checked, Contract, MODULES};

fn main() -> ExitCode {
    execute().unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn execute() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    ensure!(
        !arguments.is_empty() && arguments.len().is_multiple_of(2),
        "usage: contracts RELEASE FOLDER [RELEASE FOLDER]…"
    );
    let contracts = contract::all()?;
    let mut good = true;
    for mismatch in contract::attached_as_said(&contracts) {
        println!("✗ {mismatch}");
        good = false;
    }
    for pair in arguments.chunks_exact(2) {
        let (release, folder) = (&pair[0], Path::new(&pair[1]));
        let checked = check(&contracts, release, folder)
            .with_context(|| format!("compare the contracts with {release}"))?;
        good &= checked.mismatches.is_empty();
        print(release, &checked);
    }
    Ok(match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn check(contracts: &[Contract], release: &str, folder: &Path) -> Result<Checked> {
    let btf = KernelBtf::load_from(folder, &MODULES)?;
    let kallsyms = File::open(folder.join("kallsyms")).context("its symbols")?;
    let symbols = Symbols::parse(BufReader::new(kallsyms), contract::symbols())?;
    Ok(contract::check(contracts, &btf, &symbols, release))
}

fn print(release: &str, checked: &Checked) {
    let functions = checked.functions;
    match checked.mismatches.len() {
        0 => println!("✓ {release}: all {functions} functions, fields and objects match"),
        count => println!("✗ {release}: {count} mismatches; {functions} functions match"),
    }
    for mismatch in &checked.mismatches {
        println!("  - {}", mismatch.to_string().replace('\n', "\n  "));
    }
    if !checked.unseen.is_empty() {
        let programs = checked.unseen.join(" ");
        println!("  this kernel series is not yet in the contract comments of {programs}");
    }
}
