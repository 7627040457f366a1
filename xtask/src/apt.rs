//! Debian packages from a named suite, without touching the machine's own apt.
//!
//! apt itself does the work, under a private configuration below the cache: it
//! checks the suite's signature against the machine's `debian-archive-keyring`
//! and every package against the suite's checksums. The archives' addresses
//! come from the machine's own apt configuration, as apt reads it (one-line
//! `.list` and deb822 `.sources` alike); `NLMFO_DEBIAN_ARCHIVE` and
//! `NLMFO_DEBIAN_SECURITY_ARCHIVE` take their place where set.
//!
//! Package indices are fetched again when they are older than [`MAX_AGE`].

use std::{
    ffi::OsStr,
    fmt, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use self::{
    output::{parse_madison, parse_simulation, status_of},
    source::Archives,
};
use crate::{
    arch::Arch,
    cache::{self, Cache},
    progress,
};

mod output;
mod source;

pub use self::source::Suite;

/// How old a suite's package index may be before it is fetched again.
pub const MAX_AGE: Duration = Duration::from_hours(12);

/// The signing keys of Debian's archives, from the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One version of one package, as a suite offers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    pub package: String,
    pub version: String,
    pub suite: Suite,
}

/// A package pinned to one version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pin {
    pub package: String,
    pub version: String,
}

impl fmt::Display for Pin {
    /// `package=version`, as apt takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.package, self.version)
    }
}

/// The private apt, below `apt/` of the cache (`apt-arm64/` for the packages of another
/// architecture than this machine's).
#[derive(Clone, Debug)]
pub struct Apt {
    cache: Cache,
    arch: Arch,
    root: PathBuf,
    archives: Archives,
}

/// A set of suites whose package indices are at hand.
#[derive(Clone, Debug)]
pub struct Index {
    apt: Apt,
    suites: Vec<Suite>,
    config: PathBuf,
}

impl Apt {
    /// For packages of this machine's architecture; otherwise as [`Apt::of`].
    pub fn new(cache: &Cache) -> Result<Self> {
        Self::of(cache, Arch::HERE)
    }

    /// For packages of this architecture. Reads the machine's apt configuration; fetches nothing
    /// yet.
    ///
    /// Fails where apt, dpkg-deb or the archive keyring is missing, or where
    /// neither apt's configuration nor the environment names the archives.
    pub fn of(cache: &Cache, arch: Arch) -> Result<Self> {
        ensure!(
            Path::new(KEYRING).exists(),
            "{KEYRING} is missing, so packages cannot be verified: install debian-archive-keyring"
        );
        let name = format!("apt{}", arch.suffix());
        for dir in ["lists/partial", "debs"] {
            cache.dir(Path::new(&name).join(dir))?;
        }
        Ok(Self {
            cache: cache.clone(),
            arch,
            root: cache.path(name),
            archives: Archives::of_this_machine()?,
        })
    }

    /// The package indices of `suites`, fetched where they are missing or older
    /// than [`MAX_AGE`]. Where several suites hold a package, apt's rule
    /// decides: the newest version, whichever suite it comes from.
    pub fn index(&self, suites: &[Suite]) -> Result<Index> {
        for &suite in suites {
            self.refresh(suite)?;
        }
        Ok(Index {
            apt: self.clone(),
            suites: suites.to_vec(),
            config: self.configure(suites)?,
        })
    }

    /// Of its packages.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    fn refresh(&self, suite: Suite) -> Result<()> {
        let stamp = self.root.join("updated").join(suite.name());
        if fresh(&stamp)? {
            return Ok(());
        }
        let _lock = self.cache.lock("apt")?;
        // The previous holder of the lock may have done it.
        if fresh(&stamp)? {
            return Ok(());
        }
        let config = self.configure(&[suite])?;
        let fetched = progress::step(&format!("fetching the package index of {suite}"), || {
            run(self.command("apt-get", &config).arg("update"))
        });
        match fetched {
            Ok(_) => {
                fs::create_dir_all(self.root.join("updated"))?;
                fs::write(&stamp, "").with_context(|| format!("write {}", stamp.display()))
            }
            Err(error) if stamp.exists() => {
                eprintln!("keeping the old package index of {suite}: {error:#}");
                Ok(())
            }
            Err(error) => Err(error.context(format!(
                "fetch the package index of {suite}; if a signing key is missing, this \
                 machine's debian-archive-keyring is older than the suite"
            ))),
        }
    }

    /// Writes the private configuration for `suites` and returns its file.
    fn configure(&self, suites: &[Suite]) -> Result<PathBuf> {
        let dir = self.root.join("etc").join(join_with(suites, "+"));
        fs::create_dir_all(dir.join("cache"))
            .with_context(|| format!("create {}", dir.display()))?;
        let mut sources = String::new();
        for suite in suites {
            let address = self.archives.address(suite.archive())?;
            sources += &format!("deb [signed-by={KEYRING}] {address} {suite} main\n");
        }
        write_changed(&dir.join("sources.list"), &sources)?;
        write_changed(&dir.join("status"), "")?;
        let config = dir.join("apt.conf");
        write_changed(
            &config,
            &format!(
                "APT::Architecture \"{arch}\";\n\
                 APT::Architectures {{ \"{arch}\"; }};\n\
                 Dir::State \"{root}\";\n\
                 Dir::State::lists \"{root}/lists\";\n\
                 Dir::State::status \"{dir}/status\";\n\
                 Dir::State::extended_states \"{dir}/extended_states\";\n\
                 Dir::Cache \"{dir}/cache\";\n\
                 Dir::Etc::sourcelist \"{dir}/sources.list\";\n\
                 Dir::Etc::sourceparts \"/dev/null\";\n\
                 Dir::Etc::preferences \"/dev/null\";\n\
                 Dir::Etc::preferencesparts \"/dev/null\";\n\
                 Dir::Etc::main \"/dev/null\";\n\
                 Dir::Etc::parts \"/dev/null\";\n\
                 {machine}\
                 Acquire::Retries \"3\";\n\
                 Acquire::Languages \"none\";\n\
                 Acquire::Check-Valid-Until \"false\";\n\
                 Acquire::Check-Date \"false\";\n\
                 APT::Get::List-Cleanup \"false\";\n\
                 APT::Update::Error-Mode \"any\";\n\
                 APT::Sandbox::User \"\";\n",
                arch = self.arch,
                root = self.root.display(),
                dir = dir.display(),
                machine = self.archives.transport,
            ),
        )?;
        Ok(config)
    }

    fn command(&self, program: &str, config: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .env("APT_CONFIG", config)
            .env("LC_ALL", "C.UTF-8")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null());
        command
    }
}

impl Index {
    /// Of its packages.
    pub fn arch(&self) -> Arch {
        self.apt.arch
    }

    /// The names of all packages that start with `prefix`.
    pub fn names(&self, prefix: &str) -> Result<Vec<String>> {
        let out = run(self.command("apt-cache").args(["pkgnames", prefix]))?;
        Ok(out.lines().map(str::to_owned).collect())
    }

    /// Every version that the index offers of these packages, in apt's order;
    /// a package that no suite has is simply absent.
    pub fn offers<S: AsRef<OsStr>>(
        &self,
        packages: impl IntoIterator<Item = S>,
    ) -> Result<Vec<Offer>> {
        let out = run(self.command("apt-cache").arg("madison").args(packages))?;
        Ok(parse_madison(&out))
    }

    /// `packages` (names, or `name=version`) and all that they depend on,
    /// recommendations left out, as if nothing but `provided` were installed.
    /// Of no packages it is empty.
    ///
    /// `target` prefers that suite's versions, as `apt-get -t` does.
    pub fn closure(
        &self,
        packages: &[&str],
        provided: &[&str],
        target: Option<Suite>,
    ) -> Result<Vec<Pin>> {
        if packages.is_empty() {
            return Ok(Vec::new());
        }
        let status = tempfile::NamedTempFile::new()?;
        fs::write(status.path(), status_of(provided, self.apt.arch))?;
        let mut command = self.command("apt-get");
        command
            .args(["install", "--simulate", "--no-install-recommends", "-qq"])
            .arg("-o")
            .arg(format!("Dir::State::status={}", status.path().display()));
        if let Some(suite) = target {
            command.args(["-t", suite.name()]);
        }
        let out = run(command.args(packages))
            .with_context(|| format!("find the dependencies of {}", packages.join(", ")))?;
        let pins = parse_simulation(&out);
        ensure!(
            !pins.is_empty(),
            "apt would install nothing for {packages:?}"
        );
        Ok(pins)
    }

    /// Downloads packages and returns their `.deb` files in the order asked
    /// for. What an earlier run downloaded is used again.
    pub fn download(&self, pins: &[Pin]) -> Result<Vec<PathBuf>> {
        let debs = self.apt.root.join("debs");
        let arch = self.apt.arch;
        if missing(&debs, arch, pins)?.is_empty() {
            return present(&debs, arch, pins);
        }
        let _lock = self.apt.cache.lock("debs")?;
        // The previous holder of the lock may have downloaded some.
        let missing = missing(&debs, arch, pins)?;
        if !missing.is_empty() {
            // A partial file never gets the name of a whole one.
            let arriving = cache::scratch(&debs, ".arriving")?;
            let what = match missing.as_slice() {
                [one] => format!("downloading {one}"),
                many => format!("downloading {} packages", many.len()),
            };
            progress::step(&what, || {
                run(self
                    .command("apt-get")
                    .current_dir(arriving.path())
                    .args(["download", "-q"])
                    .args(&missing))
                .with_context(|| {
                    format!(
                        "download {} from {}; if the archive has changed, remove {} and try again",
                        missing.join(" "),
                        join(&self.suites),
                        self.apt.root.join("updated").display()
                    )
                })
            })?;
            for entry in fs::read_dir(arriving.path())? {
                let entry = entry?;
                fs::rename(entry.path(), debs.join(entry.file_name()))?;
            }
        }
        present(&debs, arch, pins)
    }

    /// The newest version of `package` in the index.
    pub fn newest(&self, package: &str) -> Result<Pin> {
        self.offers([package])?
            .into_iter()
            .max_by(|a, b| deb_version::compare_versions(&a.version, &b.version))
            .map(|offer| Pin {
                package: offer.package,
                version: offer.version,
            })
            .ok_or_else(|| anyhow!("{} has no package {package}", join(&self.suites)))
    }

    fn command(&self, program: &str) -> Command {
        self.apt.command(program, &self.config)
    }
}

/// Unpacks packages into a directory, one over the other, following links to
/// directories that are already there (a merged `/usr` stays merged).
pub fn unpack<P: AsRef<Path>>(debs: impl IntoIterator<Item = P>, into: &Path) -> Result<()> {
    fs::create_dir_all(into).with_context(|| format!("create {}", into.display()))?;
    for deb in debs {
        let deb = deb.as_ref();
        let mut contents = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(deb)
            .stdout(Stdio::piped())
            .spawn()
            .context("start dpkg-deb")?;
        let tar = contents.stdout.take().expect("stdout is piped");
        let unpacked = run(Command::new("tar")
            .args(["--extract", "--keep-directory-symlink", "--directory"])
            .arg(into)
            .stdin(tar));
        let read = contents.wait().context("wait for dpkg-deb")?;
        unpacked.with_context(|| format!("unpack {} into {}", deb.display(), into.display()))?;
        ensure!(
            read.success(),
            "dpkg-deb --fsys-tarfile {} failed",
            deb.display()
        );
    }
    Ok(())
}

/// Writes a file unless it has this content: apt rebuilds its cache of the package indices when a
/// source is newer.
fn write_changed(path: &Path, contents: &str) -> Result<()> {
    if fs::read_to_string(path).is_ok_and(|old| old == contents) {
        return Ok(());
    }
    // Another xtask may be reading it, so it is replaced atomically.
    let write = || -> io::Result<()> {
        let dir = path
            .parent()
            .expect("a configuration file lies in a folder");
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.write_all(contents.as_bytes())?;
        file.persist(path)?;
        Ok(())
    };
    write().with_context(|| format!("write {}", path.display()))
}

/// The pins whose files are missing.
fn missing(debs: &Path, arch: Arch, pins: &[Pin]) -> Result<Vec<String>> {
    let mut missing = Vec::new();
    for pin in pins {
        if find_deb(debs, arch, pin)?.is_none() {
            missing.push(pin.to_string());
        }
    }
    Ok(missing)
}

/// The files of all pins.
fn present(debs: &Path, arch: Arch, pins: &[Pin]) -> Result<Vec<PathBuf>> {
    pins.iter()
        .map(|pin| {
            find_deb(debs, arch, pin)?
                .ok_or_else(|| anyhow!("apt-get download left no file for {pin}"))
        })
        .collect()
}

/// The file that `apt-get download` makes of a pin: of this architecture, or of all.
fn find_deb(dir: &Path, arch: Arch, pin: &Pin) -> Result<Option<PathBuf>> {
    for arch in [arch.debian(), "all"] {
        let path = dir.join(format!(
            "{}_{}_{arch}.deb",
            pin.package,
            pin.version.replace(':', "%3a")
        ));
        if path.try_exists()? {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

fn fresh(stamp: &Path) -> Result<bool> {
    match fs::metadata(stamp) {
        // A stamp from the future (a clock set back) counts as stale.
        Ok(meta) => Ok(meta.modified()?.elapsed().is_ok_and(|age| age < MAX_AGE)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(|| format!("look at {}", stamp.display())),
    }
}

/// Runs a command to its end and returns its standard output; its standard
/// error becomes part of the error.
pub(crate) fn run(command: &mut Command) -> Result<String> {
    let out = command
        .output()
        .with_context(|| format!("start {}", command.get_program().display()))?;
    if !out.status.success() {
        bail!(
            "{} {} failed ({}):\n{}{}",
            command.get_program().display(),
            join_with(command.get_args().map(OsStr::display), " "),
            out.status,
            String::from_utf8_lossy(&out.stdout),
            String::from_utf8_lossy(&out.stderr),
        );
    }
    String::from_utf8(out.stdout).with_context(|| {
        format!(
            "{} wrote text that is not UTF-8",
            command.get_program().display()
        )
    })
}

fn join<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    join_with(items, ", ")
}

fn join_with<T: fmt::Display>(items: impl IntoIterator<Item = T>, separator: &str) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    items.join(separator)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_escaped_in_a_file_name() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let pin = Pin {
            package: "rpcbind".into(),
            version: "1:2.6-4".into(),
        };
        assert_eq!(find_deb(dir.path(), Arch::Arm64, &pin)?, None);
        let path = dir.path().join("rpcbind_1%3a2.6-4_all.deb");
        fs::write(&path, "")?;
        assert_eq!(find_deb(dir.path(), Arch::Arm64, &pin)?, Some(path));
        Ok(())
    }
}
