//! `cargo xtask package`: a deb, an rpm and a tarball with the same files.
//!
//! The program needs glibc 2.28 or newer: zig, which has the symbols of each version, links it.
//! dpkg-deb and rpmbuild make the packages from one tree ([`layout`]), and lintian and rpmlint check
//! them, in a [`workshop`]. All times in a package are that of the last commit, so that a second build
//! gives the same bytes.

mod build;
mod deb;
mod dpkg;
mod glibc;
pub mod layout;
pub mod promtool;
mod rpm;
mod tar;
mod third_party;
mod workshop;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use self::{glibc::Needs, layout::Tree, workshop::Workshop};
use crate::{
    apt,
    arch::Arch,
    build::target_dir,
    cache::{Cache, workspace_root},
    progress,
    zig::OLDEST_GLIBC,
};

pub use self::glibc::Glibc;

#[derive(Debug, Args)]
pub struct PackageArgs {
    /// Make packages for this architecture
    #[arg(long, value_enum, default_value_t)]
    arch: Arch,
    /// Link with this machine's C library; the packages need it or a newer one
    #[arg(long)]
    native: bool,
    /// Package this program and build none
    #[arg(long, value_name = "FILE", conflicts_with = "native")]
    program: Option<PathBuf>,
    /// Build everything twice, from nothing, and compare the packages
    #[arg(long, conflicts_with = "program")]
    twice: bool,
}

/// What the metadata of all packages has in common.
#[derive(Debug)]
pub struct About {
    pub version: &'static str,
    pub arch: Arch,
    /// Of the last commit, in seconds since 1970.
    pub epoch: u64,
    pub needs: Needs,
}

impl About {
    fn of(program: &Path, arch: Arch) -> Result<Self> {
        let needs = Needs::of(program)?;
        ensure!(
            needs.arch == arch,
            "{} is a program for {}, not for {arch}",
            program.display(),
            needs.arch
        );
        let mut git = Command::new("git");
        git.current_dir(workspace_root());
        let epoch = apt::run(git.args(["log", "-1", "--format=%ct"]))?;
        Ok(About {
            version: env!("CARGO_PKG_VERSION"),
            arch,
            epoch: epoch
                .trim()
                .parse()
                .context("read the time of the commit")?,
            needs,
        })
    }
}

/// Makes the packages and prints their paths.
pub fn execute(cache: &Cache, args: &PackageArgs) -> Result<ExitCode> {
    let arch = args.arch;
    ensure!(
        !args.native || arch == Arch::HERE,
        "--native links with this machine's C library, and this machine is {}",
        Arch::HERE
    );
    let workshop = Workshop::open(cache)?;
    let target = target_dir().join("package");
    let program = |target: &Path| match &args.program {
        Some(program) => Ok(program.clone()),
        None => build::program(cache, target, arch, args.native),
    };
    let to = target.join("packages");
    let built = program(&target.join("build"))?;
    let made = make(cache, &workshop, &built, arch, &to)?;
    if args.program.is_none() && !args.native {
        let glibc = Needs::of(&built)?.glibc;
        ensure!(
            glibc <= OLDEST_GLIBC,
            "{} needs the C library {glibc}; {OLDEST_GLIBC} was asked for",
            built.display()
        );
    }
    if args.twice {
        let scratch = tempfile::tempdir_in(&target)?;
        let again = program(&scratch.path().join("build"))?;
        let packages = scratch.path().join("packages");
        let again = make(cache, &workshop, &again, arch, &packages)?;
        for (one, other) in made.iter().zip(&again) {
            ensure!(
                fs::read(one)? == fs::read(other)?,
                "a second build gives another {}",
                one.display()
            );
        }
        println!("a second build gives the same bytes");
    }
    for path in made {
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes what a guest needs to install a deb with this program: dpkg's files, and `/nlmfo.deb`, each
/// with its path in the guest. The deb is not checked.
pub fn for_guest(cache: &Cache, arch: Arch, program: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let about = About::of(program, arch)?;
    let manuals = manuals(cache)?;
    let to = target_dir().join("package/guest");
    if to.exists() {
        fs::remove_dir_all(&to).with_context(|| format!("remove {}", to.display()))?;
    }
    fs::create_dir_all(&to).with_context(|| format!("create {}", to.display()))?;
    let tree = Tree::make(to.join("tree"), arch, program, &manuals)?;
    let deb = deb::make(&tree, &about, &to)?;
    let dpkg = dpkg::tree(cache, arch)?;
    Ok(vec![
        (dpkg.join("usr"), "/usr".into()),
        (dpkg.join("var/lib/dpkg"), "/var/lib/dpkg".into()),
        (deb, "/nlmfo.deb".into()),
    ])
}

/// Makes and checks the packages in the directory `to`.
fn make(
    cache: &Cache,
    workshop: &Workshop,
    program: &Path,
    arch: Arch,
    to: &Path,
) -> Result<Vec<PathBuf>> {
    let about = About::of(program, arch)?;
    println!("the program needs the C library {}", about.needs.glibc);
    let manuals = manuals(cache)?;
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    let tree = |name: &str| {
        let root = workshop.work().join(name);
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        Tree::make(root, arch, program, &manuals)
    };
    let tar = tar::make(&tree("tar")?, &about, to)?;
    let deb = deb::make(&tree("deb")?, &about, to)?;
    progress::step("lintian", || deb::check(workshop, &deb))?;
    let rpm = rpm::make(workshop, &tree("rpm")?, &about, to)?;
    progress::step("rpmlint", || rpm::check(workshop, &rpm))?;
    Ok(vec![deb, rpm, tar])
}

/// Man pages and completions, which `nlmfo/examples/manuals.rs` makes from nlmfo's arguments.
fn manuals(cache: &Cache) -> Result<PathBuf> {
    let to = target_dir().join("package/manuals");
    if to.exists() {
        fs::remove_dir_all(&to).with_context(|| format!("remove {}", to.display()))?;
    }
    // Built as the tests build it: cargo would build nlmfo again otherwise.
    let programs = crate::build::workspace(cache, Arch::HERE, false)?;
    apt::run(Command::new(programs.join("examples/manuals")).arg(&to))
        .context("make the man pages")?;
    Ok(to)
}

/// A template of `dist/packaging` with `@NAME@` replaced.
fn template(name: &str, values: &[(&str, &str)]) -> Result<String> {
    let path = workspace_root().join("dist/packaging").join(name);
    let mut text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    for (name, value) in values {
        text = text.replace(&format!("@{name}@"), value);
    }
    ensure!(
        !text.contains('@') || !has_placeholder(&text),
        "{}: a value is missing",
        path.display()
    );
    Ok(text)
}

/// `@WORD@` in capital letters.
fn has_placeholder(text: &str) -> bool {
    let mut parts = text.split('@').skip(1);
    parts.any(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_uppercase()))
}
