//! The compiler and the linker for the programs that the kernel runs.
//!
//! They need three things that rustup's stable does not have together: `core`
//! for `bpfel-unknown-none`, the compiler that this `core` belongs to, and
//! `bpf-linker` on that compiler's own LLVM. They come from a rustup toolchain
//! that has `rust-src` ([`rustup`]), or else from Debian's packages, unpacked
//! privately ([`debian`]). Either way the directory looks the same, and
//! `nlmfo/build.rs` knows only this:
//!
//! ```text
//! ebpf-toolchain/
//!   bin/rustc        runs compiler/bin/rustc with lib and sysroot below
//!   bin/bpf-linker
//!   compiler/        what rustup or Debian calls the prefix: bin, lib
//!   lib/             the compiler's own shared libraries, libLLVM among them
//!   sysroot/         std for the host, core for bpfel-unknown-none
//!   about            what it was made of; a change makes it again
//! ```

mod debian;
mod rustup;

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    apt,
    arch::Arch,
    build,
    cache::{Cache, workspace_root},
    progress,
};

/// The target of the kernel side: little-endian BPF.
const TARGET: &str = "bpfel-unknown-none";

/// The release of bpf-linker in the crate registry, and the LLVM releases that it knows.
const BPF_LINKER: &str = "0.13.0";
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;

/// Starts the private compiler from wherever the directory lies. `$0` is absolute:
/// cargo and build.rs call it so.
const RUSTC_WRAPPER: &str = r#"#!/bin/sh
here=${0%/*}/..
export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$here/compiler/bin/rustc" "$@" --sysroot "$here/sysroot"
"#;

/// A complete `ebpf-toolchain` directory.
#[derive(Clone, Debug)]
pub struct Toolchain {
    dir: PathBuf,
}

impl Toolchain {
    /// The toolchain in the cache, made first if it is not there or if its
    /// compiler is gone or no longer the one that it was made with.
    pub fn prepare(cache: &Cache) -> Result<Self> {
        const ENTRY: &str = "ebpf-toolchain";
        let _lock = cache.lock("toolchain")?;
        let present = Self {
            dir: cache.path(ENTRY),
        };
        if present.dir.exists() && !present.is_current() {
            fs::remove_dir_all(&present.dir)
                .with_context(|| format!("remove the outdated {}", present.dir.display()))?;
        }
        let dir = cache
            .once(ENTRY, |dir| make(cache, dir))
            .context("prepare the eBPF toolchain")?;
        Ok(Self { dir })
    }

    /// What it was made of, in one line for a person.
    pub fn describe(&self) -> Result<String> {
        let version = version_of(&self.rustc())?;
        let rustc = version.lines().next().unwrap_or_default().to_owned();
        Ok(format!(
            "{rustc}, bpf-linker {BPF_LINKER} in {}",
            self.dir.display()
        ))
    }

    /// Clippy for the kernel side on this architecture, warnings denied.
    pub fn lint_ebpf(&self, arch: Arch) -> Result<()> {
        let clippy = self.dir.join("compiler/bin/cargo-clippy");
        ensure!(
            clippy.exists(),
            "{} is missing: `rustup component add clippy` for the toolchain that has rust-src",
            clippy.display()
        );
        let status = Command::new(clippy)
            .args(["clippy", "--locked", "--package", "nlmfo-ebpf"])
            .args(["--profile", "ebpf", "--target", TARGET])
            .arg("--target-dir")
            .arg(build::target_dir().join("ebpf"))
            // As nlmfo/build.rs compiles it: for the registers of the architecture.
            .args(["--", "-Dwarnings", "--cfg"])
            .arg(format!("bpf_target_arch=\"{}\"", arch.machine()))
            .current_dir(workspace_root())
            .env("RUSTC", self.rustc())
            .env("RUSTC_BOOTSTRAP", "aya_ebpf")
            .env("LD_LIBRARY_PATH", self.dir.join("lib"))
            .env("SYSROOT", self.dir.join("sysroot"))
            .env_remove("RUSTFLAGS")
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .status()
            .context("start cargo-clippy for nlmfo-ebpf")?;
        ensure!(status.success(), "clippy found faults in nlmfo-ebpf");
        Ok(())
    }

    fn rustc(&self) -> PathBuf {
        self.dir.join("bin/rustc")
    }

    /// A rustup toolchain may have been updated or removed underneath us.
    fn is_current(&self) -> bool {
        let made_of = fs::read_to_string(self.dir.join("about"));
        let is = version_of(&self.rustc()).map(|version| about(&version));
        matches!((made_of, is), (Ok(made_of), Ok(is)) if made_of == is)
    }
}

/// Fills `dir`, which does not exist yet.
fn make(cache: &Cache, dir: &Path) -> Result<()> {
    fs::create_dir(dir).with_context(|| format!("create {}", dir.display()))?;
    match rustup::find()? {
        Some(toolchain) => toolchain.lay_out(dir)?,
        None => debian::lay_out(cache, dir).context(
            "no rustup toolchain here has rust-src, and the compiler from Debian's packages failed; run \
                 `rustup component add rust-src`, or name a directory with built objects in \
                 NLMFO_EBPF_ELF",
        )?,
    }
    fs::create_dir(dir.join("bin"))?;
    let rustc = dir.join("bin/rustc");
    fs::write(&rustc, RUSTC_WRAPPER)?;
    fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755))?;
    let version = version_of(&rustc)?;
    progress::step(&format!("building bpf-linker {BPF_LINKER}"), || {
        install_linker(dir, llvm_major(&version)?)
    })?;
    fs::write(dir.join("about"), about(&version))?;
    Ok(())
}

/// Builds bpf-linker against the libLLVM in `dir/lib`: bitcode is readable only
/// to the LLVM that wrote it, or a newer one.
fn install_linker(dir: &Path, llvm: u32) -> Result<()> {
    let scratch = tempfile::tempdir_in(dir)?;
    // llvm-sys links with `-lLLVM`, and the loader then asks for the SONAME.
    let shared = find_file(&dir.join("lib"), "libLLVM.so.")?;
    let prefix_lib = scratch.path().join("llvm/lib");
    fs::create_dir_all(&prefix_lib)?;
    for name in [
        "libLLVM.so".as_ref(),
        shared.file_name().unwrap_or_default(),
    ] {
        symlink(&shared, prefix_lib.join(name))?;
    }
    apt::run(
        clean_cargo()
            .args(["install", "bpf-linker", "--quiet", "--locked", "--no-track"])
            .args(["--version", &format!("={BPF_LINKER}")])
            .args(["--no-default-features", "--features"])
            .arg(format!("llvm-{llvm}"))
            .arg("--root")
            .arg(dir)
            .arg("--target-dir")
            .arg(scratch.path().join("target"))
            .env("LLVM_PREFIX", scratch.path().join("llvm"))
            .env("LD_LIBRARY_PATH", dir.join("lib"))
            // LLVM does the work; its caller need not be fast, but soon there.
            .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_RELEASE_DEBUG", "0")
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
    )?;
    Ok(())
}

/// cargo as the user has it, free of what the cargo that runs us has set.
fn clean_cargo() -> Command {
    let mut cargo = build::tool("CARGO", "cargo");
    for variable in [
        "CARGO_BUILD_TARGET",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_TARGET_DIR",
        "RUSTC",
        "RUSTC_WORKSPACE_WRAPPER",
        "RUSTFLAGS",
    ] {
        cargo.env_remove(variable);
    }
    cargo
}

/// `rustc -vV`.
fn version_of(rustc: &Path) -> Result<String> {
    apt::run(Command::new(rustc).arg("-vV"))
}

/// The number that the line `LLVM version: 22.1.8` begins with.
fn llvm_major(version: &str) -> Result<u32> {
    let llvm = field(version, "LLVM version")?;
    llvm.split('.')
        .next()
        .and_then(|major| major.parse().ok())
        .with_context(|| format!("read the LLVM version {llvm:?} of rustc"))
}

fn field<'a>(version: &'a str, name: &str) -> Result<&'a str> {
    version
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        .with_context(|| format!("`rustc -vV` has no line {name:?}:\n{version}"))
}

fn about(version: &str) -> String {
    format!("bpf-linker {BPF_LINKER}\n{version}")
}

/// The one file of `dir` whose name begins with `prefix`.
fn find_file(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let dir = fs::canonicalize(dir).with_context(|| format!("resolve {}", dir.display()))?;
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(prefix.as_bytes())
        {
            return Ok(entry.path());
        }
    }
    anyhow::bail!("no {prefix}* in {}", dir.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    const VERSION: &str = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\n\
                           host: x86_64-unknown-linux-gnu\nrelease: 1.96.0\n\
                           LLVM version: 22.1.8\n";

    #[test]
    fn the_llvm_release_is_read_from_rustc() -> Result<()> {
        assert_eq!(llvm_major(VERSION)?, 22);
        assert_eq!(field(VERSION, "host")?, "x86_64-unknown-linux-gnu");
        assert!(llvm_major("rustc 1.96.0\nLLVM version: unknown\n").is_err());
        assert!(llvm_major("rustc 1.96.0\n").is_err());
        Ok(())
    }

    #[test]
    fn a_folder_without_a_matching_compiler_is_outdated() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let toolchain = Toolchain {
            dir: dir.path().to_path_buf(),
        };
        assert!(!toolchain.is_current(), "no compiler at all");
        fs::create_dir(dir.path().join("bin"))?;
        let rustc = toolchain.rustc();
        fs::write(&rustc, "#!/bin/sh\necho rustc 1.96.0\n")?;
        fs::set_permissions(&rustc, fs::Permissions::from_mode(0o755))?;
        fs::write(dir.path().join("about"), about("rustc 1.96.0\n"))?;
        assert!(toolchain.is_current());
        fs::write(dir.path().join("about"), about("rustc 1.95.0\n"))?;
        assert!(!toolchain.is_current());
        Ok(())
    }
}
