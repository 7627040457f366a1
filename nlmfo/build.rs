//! Builds the kernel side, the objects of the package `nlmfo-ebpf`, into `OUT_DIR`
//! under their own names.
//!
//! The compiler and the linker are those that `cargo xtask toolchain` prepared,
//! in the directory that `xtask/src/toolchain` describes. `NLMFO_EBPF_ELF` names a directory
//! with ready-made ELFs instead; then nothing is compiled here.

#[path = "build/paths.rs"]
mod paths;

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, bail, ensure};
use object::build::elf::{Builder, SectionData};

const TARGET: &str = "bpfel-unknown-none";
const OBJECTS: [&str; 3] = ["nlmfo-ebpf", "nlmfo-gate", "nlmfo-sockets"];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            for line in format!("{error:#}").lines() {
                println!("cargo::error={line}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let out_dir = PathBuf::from(variable("OUT_DIR")?);
    println!("cargo::rustc-env=NLMFO_BUILT_FROM={}", commit()?);
    for variable in ["NLMFO_EBPF_ELF", "NLMFO_CACHE"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let ready = non_empty("NLMFO_EBPF_ELF");
    let folder = match &ready {
        Some(ready) => workspace()?.join(ready),
        None => build(&out_dir)?,
    };
    for object in OBJECTS {
        let elf = folder.join(object);
        // Not the objects built here: they are newer than this run, so that the next build would run
        // this again and compile nlmfo anew.
        if ready.is_some() {
            println!("cargo::rerun-if-changed={}", elf.display());
        }
        let built = fs::read(&elf)
            .with_context(|| format!("read the eBPF programs of {}", elf.display()))?;
        let stripped = without_dwarf(&built)
            .with_context(|| format!("strip the eBPF programs of {}", elf.display()))?;
        fs::write(out_dir.join(object), stripped)?;
    }
    Ok(())
}

/// The commit of a release build, for `--version`; `NLMFO_COMMIT` where git does not know it.
/// Other builds do without: they would be made again for every commit.
fn commit() -> Result<String> {
    println!("cargo::rerun-if-env-changed=NLMFO_COMMIT");
    if let Some(commit) = non_empty("NLMFO_COMMIT") {
        return Ok(commit.to_string_lossy().into_owned());
    }
    if variable("PROFILE")? != "release" {
        return Ok("unknown (debug build)".to_owned());
    }
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    if let Some(head) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={head}");
    }
    Ok(git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned()))
}

/// The ELF less its DWARF, from which bpf-linker has made the BTF that stays:
/// no one reads it, and it is most of the file.
fn without_dwarf(elf: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(elf)?;
    for section in &mut builder.sections {
        let name = section.name.as_slice();
        section.delete = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
    }
    builder.delete_orphans();
    // LLVM puts all names into one table; the writer wants the sections' apart.
    let names = builder.sections.add();
    names.name = b".shstrtab"[..].into();
    names.sh_type = object::elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    builder.write(&mut stripped)?;
    Ok(stripped)
}

/// Runs cargo for the kernel side and returns the directory with its objects; a rebuild
/// after a change takes seconds.
fn build(out_dir: &Path) -> Result<PathBuf> {
    let workspace = workspace()?;
    for source in ["nlmfo-ebpf", "nlmfo-common", "Cargo.lock", "Cargo.toml"] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(source).display()
        );
    }
    let toolchain = toolchain(&workspace)?;
    println!(
        "cargo::rerun-if-changed={}",
        toolchain.join("about").display()
    );

    // One for all profiles of the host: the kernel side is always optimised. Not
    // the directory that the outer cargo has locked.
    let target_dir = target_dir(out_dir)?.join("ebpf");
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .args(["build", "--quiet", "--locked", "--package", "nlmfo-ebpf"])
        .args(["--profile", "ebpf", "--target", TARGET, "--target-dir"])
        .arg(&target_dir)
        .current_dir(&workspace)
        .env("RUSTC", toolchain.join("bin/rustc"))
        // aya-ebpf uses inline assembly for BPF, which is not stable yet.
        .env("RUSTC_BOOTSTRAP", "aya_ebpf")
        .env(
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER",
            toolchain.join("bin/bpf-linker"),
        )
        .env(
            "CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS",
            // Whose registers the kernel hands to a kprobe: for every crate, ours
            // too, which AYA_BPF_TARGET_ARCH would not reach.
            format!(
                "-Clink-arg=--btf --cfg bpf_target_arch=\"{}\" {}",
                variable("CARGO_CFG_TARGET_ARCH")?.display(),
                paths::without_paths(&workspace)
            ),
        );
    // What concerns the host's compiler alone, clippy's wrapper for example.
    for variable in [
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTC_WRAPPER",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(variable);
    }
    let output = cargo.output().context("start cargo for nlmfo-ebpf")?;
    let messages = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success(),
        "building the eBPF programs failed ({}):\n{messages}",
        output.status
    );
    for line in messages.lines() {
        println!("cargo::warning={line}");
    }
    Ok(target_dir.join(TARGET).join("ebpf"))
}

/// Where `cargo xtask toolchain` keeps what it prepared.
fn toolchain(workspace: &Path) -> Result<PathBuf> {
    let cache = match non_empty("NLMFO_CACHE") {
        Some(dir) => workspace.join(dir),
        None => workspace.join("target/lab"),
    };
    let toolchain = cache.join("ebpf-toolchain");
    if !toolchain.join("about").exists() {
        bail!(
            "no eBPF toolchain in {}: run `cargo xtask build`, or name a directory with built objects \
             in NLMFO_EBPF_ELF",
            toolchain.display()
        );
    }
    Ok(toolchain)
}

/// The directory of the outer cargo's output, from `TARGET/PROFILE/build/PACKAGE/out`.
fn target_dir(out_dir: &Path) -> Result<&Path> {
    out_dir
        .ancestors()
        .nth(4)
        .with_context(|| format!("no target folder above {}", out_dir.display()))
}

/// Paths in the environment are relative to it, wherever cargo was started.
fn workspace() -> Result<PathBuf> {
    let nlmfo = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = nlmfo.parent().context("nlmfo lies in the workspace")?;
    Ok(workspace.to_path_buf())
}

fn variable(name: &str) -> Result<OsString> {
    env::var_os(name).with_context(|| format!("cargo did not set {name}"))
}

fn non_empty(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}
