//! The compiler from rustup, where one of its toolchains has `rust-src`: `core`
//! for BPF is compiled from that source by the same compiler.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{BPF_LINKER, BPF_LINKER_LLVM, TARGET, field, llvm_major, version_of};
use crate::{apt, progress};

/// A rustup toolchain that can compile for BPF.
#[derive(Debug)]
pub struct WithSource {
    name: String,
    prefix: PathBuf,
    host: String,
}

/// The first toolchain with `rust-src` that this workspace and bpf-linker can
/// use, the active one before the others. `None` without rustup.
pub fn find() -> Result<Option<WithSource>> {
    let Ok(list) = apt::run(Command::new("rustup").args(["toolchain", "list"])) else {
        return Ok(None);
    };
    for name in by_preference(&list) {
        let which = Command::new("rustup")
            .args(["which", "--toolchain", name, "rustc"])
            .output()?;
        let rustc = String::from_utf8_lossy(&which.stdout);
        let Some(prefix) = Path::new(rustc.trim()).ancestors().nth(2) else {
            continue;
        };
        if !source(prefix).join("core/src/lib.rs").exists() {
            continue;
        }
        let version = version_of(Path::new(rustc.trim()))?;
        if let Err(reason) = suits(&version) {
            eprintln!("rustup's {name} has rust-src, but {reason:#}");
            continue;
        }
        return Ok(Some(WithSource {
            name: name.to_owned(),
            prefix: prefix.to_path_buf(),
            host: field(&version, "host")?.to_owned(),
        }));
    }
    Ok(None)
}

impl WithSource {
    /// Links to the toolchain and compiles `core` into a sysroot of our own:
    /// the user's toolchain stays as it is.
    pub fn lay_out(&self, dir: &Path) -> Result<()> {
        symlink(&self.prefix, dir.join("compiler"))?;
        symlink(self.prefix.join("lib"), dir.join("lib"))?;
        let rustlib = dir.join("sysroot/lib/rustlib");
        let out = rustlib.join(TARGET).join("lib");
        fs::create_dir_all(&out)?;
        symlink(
            self.prefix.join("lib/rustlib").join(&self.host),
            rustlib.join(&self.host),
        )?;
        progress::step(
            &format!("compiling core of rustup's {} for {TARGET}", self.name),
            || {
                self.compile(dir, &out, "core", "core/src/lib.rs", &[])?;
                self.compile(
                    dir,
                    &out,
                    "compiler_builtins",
                    "compiler-builtins/compiler-builtins/src/lib.rs",
                    &COMPILER_BUILTINS,
                )
            },
        )
    }

    fn compile(&self, dir: &Path, out: &Path, name: &str, root: &str, cfgs: &[&str]) -> Result<()> {
        let source = source(&self.prefix);
        let mut rustc = Command::new(self.prefix.join("bin/rustc"));
        rustc
            .args(["--crate-name", name, "--crate-type", "lib"])
            .arg(source.join(root))
            .args(["--edition", "2024", "--target", TARGET, "--out-dir"])
            .arg(out)
            .arg("--sysroot")
            .arg(dir.join("sysroot"))
            .args(["--emit", "metadata,link", "--cap-lints", "allow"])
            .args(["-Copt-level=3", "-Cembed-bitcode=no", "-Cpanic=abort"])
            .arg("-Zforce-unstable-if-unmarked")
            // The standard library is written in the compiler's unstable language.
            .env("RUSTC_BOOTSTRAP", "1");
        for cfg in cfgs {
            rustc.args(["--cfg", cfg]);
        }
        apt::run(&mut rustc)
            .map(drop)
            .with_context(|| format!("compile {name} for {TARGET}"))
    }
}

/// What `compiler_builtins`' own build script would set for a target without a
/// C compiler or floating point of its own (library/compiler-builtins, 1.95).
const COMPILER_BUILTINS: [&str; 5] = [
    "feature=\"compiler-builtins\"",
    "feature=\"mem\"",
    "feature=\"mem-unaligned\"",
    "f16_enabled",
    "f128_enabled",
];

fn source(prefix: &Path) -> PathBuf {
    prefix.join("lib/rustlib/src/rust/library")
}

/// The names in `rustup toolchain list`, the active or default one first.
fn by_preference(list: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = list.lines().collect();
    lines.sort_by_key(|line| !(line.contains("active") || line.contains("default")));
    lines
        .into_iter()
        .filter_map(|line| line.split_whitespace().next())
        .collect()
}

/// Whether the workspace's `rust-version` and bpf-linker allow this compiler.
fn suits(version: &str) -> Result<()> {
    let release = field(version, "release")?;
    let oldest = env!("CARGO_PKG_RUST_VERSION");
    anyhow::ensure!(
        minor(release) >= minor(oldest),
        "it is {release}, older than {oldest}"
    );
    let llvm = llvm_major(version)?;
    anyhow::ensure!(
        BPF_LINKER_LLVM.contains(&llvm),
        "bpf-linker {BPF_LINKER} does not know its LLVM {llvm}"
    );
    Ok(())
}

/// The 95 of `1.95.0`.
fn minor(release: &str) -> Option<u32> {
    release.split('.').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_active_toolchain_comes_first() {
        let list = "nightly-x86_64-unknown-linux-gnu\n\
                    stable-x86_64-unknown-linux-gnu (active, default)\n\
                    1.95.0-x86_64-unknown-linux-gnu\n";
        assert_eq!(
            by_preference(list),
            [
                "stable-x86_64-unknown-linux-gnu",
                "nightly-x86_64-unknown-linux-gnu",
                "1.95.0-x86_64-unknown-linux-gnu",
            ]
        );
        assert!(by_preference("").is_empty());
    }

    #[test]
    fn a_compiler_too_old_or_with_an_unknown_llvm_is_refused() {
        let of = |release: &str, llvm: &str| {
            suits(&format!("release: {release}\nLLVM version: {llvm}\n"))
        };
        assert!(of("1.95.0", "22.1.2").is_ok());
        assert!(of("1.97.0-nightly", "22.1.4").is_ok());
        assert!(
            of("1.88.0", "20.1.5")
                .unwrap_err()
                .to_string()
                .contains("1.88.0")
        );
        assert!(
            of("1.99.0", "24.1.0")
                .unwrap_err()
                .to_string()
                .contains("LLVM 24")
        );
    }
}
