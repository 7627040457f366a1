//! Kernels to boot: their names, what the archive offers, and the choice.
//!
//! Versions in the archive move from day to day, so a kernel is named by its
//! suite, or asked for by what it must be able to do; the version found is
//! printed by the one that boots it.

use std::{
    cmp::Ordering,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

use nlmfo_common::version::Version;

use crate::{
    apt::{Apt, Index, Offer, Pin, Suite},
    arch::Arch,
};

/// The flavour used: small, and with all that NFS, BPF and the lab need.
const FLAVOUR: &str = "cloud";

/// The suites whose kernels the lab boots.
pub const SUITES: [Suite; 8] = [
    Suite::Bookworm,
    Suite::BookwormSecurity,
    Suite::BookwormBackports,
    Suite::Trixie,
    Suite::TrixieSecurity,
    Suite::TrixieBackports,
    Suite::Forky,
    Suite::Sid,
];

/// The name of a kernel on the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelName {
    /// `bookworm-security`, or `bookworm-security:6.12.107`: the newest kernel
    /// of the suite whose version starts so. Without a prefix it is the one
    /// that the suite installs by default.
    Suite(Suite, Option<String>),
    /// `unlock-ip:broken`, `unlock-ip:works`: the newest that a stable Debian
    /// ships, else the newest anywhere, of which that is known.
    UnlockIp(UnlockIp),
    /// `path/to/bzImage` or `path/to/vmlinux`, with `,path/to/modules` unless
    /// all that NFS needs is built in.
    Path {
        image: PathBuf,
        modules: Option<PathBuf>,
    },
}

impl FromStr for KernelName {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        if name.contains('/') || name.contains(',') {
            let (image, modules) = match name.split_once(',') {
                Some((image, modules)) => (image, Some(modules.into())),
                None => (name, None),
            };
            ensure!(
                !image.is_empty(),
                "{name}: the path of the kernel is missing"
            );
            return Ok(Self::Path {
                image: image.into(),
                modules,
            });
        }
        let (head, tail) = match name.split_once(':') {
            Some((head, tail)) => (head, Some(tail)),
            None => (name, None),
        };
        if head == "unlock-ip" {
            return match tail {
                Some("broken") => Ok(Self::UnlockIp(UnlockIp::Broken)),
                Some("works") => Ok(Self::UnlockIp(UnlockIp::Works)),
                _ => bail!("{name}: give unlock-ip:broken or unlock-ip:works"),
            };
        }
        let suite = head.parse().with_context(|| {
            format!("{name} is not a kernel: give a suite, suite:version or a path (with a slash)")
        })?;
        ensure!(SUITES.contains(&suite), "{suite} has no kernels of its own");
        Ok(Self::Suite(suite, tail.map(str::to_owned)))
    }
}

impl fmt::Display for KernelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Suite(suite, None) => write!(f, "{suite}"),
            Self::Suite(suite, Some(prefix)) => write!(f, "{suite}:{prefix}"),
            Self::UnlockIp(state) => write!(f, "unlock-ip:{state}"),
            Self::Path {
                image,
                modules: None,
            } => write!(f, "{}", image.display()),
            Self::Path {
                image,
                modules: Some(modules),
            } => write!(f, "{},{}", image.display(), modules.display()),
        }
    }
}

/// What `/proc/fs/nfsd/unlock_ip` of an unpatched kernel does with an IPv4 VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnlockIp {
    /// Reports success and releases nothing.
    Broken,
    Works,
    /// A series for which the release with the fix is unknown.
    Unknown,
}

impl UnlockIp {
    /// The fix is in 6.1.191, 6.12.112, 6.18.50 and 7.3; 7.2.12 was seen to
    /// work. Series that ended before the fix never got it.
    pub fn of(version: Version) -> Self {
        let works_from = |patch| match version.patch >= patch {
            true => Self::Works,
            false => Self::Broken,
        };
        match (version.major, version.minor) {
            (6, 1) => works_from(191),
            (6, 12) => works_from(112),
            (6, 18) => works_from(50),
            (..=5 | 6, _) | (7, 0) => Self::Broken,
            (7, 2) if version.patch >= 12 => Self::Works,
            (7, 1 | 2) => Self::Unknown,
            _ => Self::Works,
        }
    }
}

impl fmt::Display for UnlockIp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Broken => "broken",
            Self::Works => "works",
            Self::Unknown => "unknown",
        })
    }
}

/// A kernel that a suite offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offered {
    pub suite: Suite,
    /// What `uname -r` says: `6.12.107+deb12-cloud-amd64`.
    pub release: String,
    /// The version of its packages: `6.12.107-1~deb12u1`.
    pub package_version: String,
    /// The upstream version, from the packages' (a release may say `6.1.0-56`).
    pub version: Version,
    /// Image and modules are one package (before 7.0), or several.
    pub packages: Vec<Pin>,
    /// Installed by the suite's `linux-image-cloud-amd64`, or of another architecture.
    pub default: bool,
}

impl Offered {
    /// A name under which this kernel, and no other of now, is found again.
    pub fn name(&self) -> KernelName {
        let prefix = (!self.default).then(|| self.package_version.clone());
        KernelName::Suite(self.suite, prefix)
    }

    pub fn unlock_ip(&self) -> UnlockIp {
        UnlockIp::of(self.version)
    }
}

/// All kernels that these suites offer, suite by suite, newest first.
pub fn offered(apt: &Apt, suites: &[Suite]) -> Result<Vec<Offered>> {
    let mut kernels = Vec::new();
    for &suite in suites {
        let index = apt.index(&[suite])?;
        kernels.extend(offered_by(&index, suite)?);
    }
    Ok(kernels)
}

fn offered_by(index: &Index, suite: Suite) -> Result<Vec<Offered>> {
    let mut names = index.names("linux-image-")?;
    names.extend(index.names("linux-binary-")?);
    let flavour = flavour(index.arch());
    names.retain(|name| name.ends_with(&flavour));
    Ok(kernels_among(suite, &flavour, &index.offers(names)?))
}

fn flavour(arch: Arch) -> String {
    format!("{FLAVOUR}-{arch}")
}

/// The kernels of a flavour among a suite's packages, newest first.
fn kernels_among(suite: Suite, flavour: &str, offers: &[Offer]) -> Vec<Offered> {
    let of_this_suite = || offers.iter().filter(move |offer| offer.suite == suite);
    let default = of_this_suite()
        .find(|offer| offer.package == format!("linux-image-{flavour}"))
        .map(|offer| offer.version.as_str());
    let mut kernels: Vec<Offered> = of_this_suite()
        .filter_map(|offer| {
            let release = offer.package.strip_prefix("linux-image-")?;
            // `linux-image-6.12-cloud-amd64` follows the newest 6.12: no kernel itself.
            release
                .split('.')
                .nth(2)?
                .starts_with(|c: char| c.is_ascii_digit())
                .then_some(())?;
            let split =
                of_this_suite().any(|other| other.package == format!("linux-binary-{release}"));
            let parts: &[&str] = match split {
                true => &["linux-binary", "linux-modules", "linux-base"],
                false => &["linux-image"],
            };
            Some(Offered {
                suite,
                release: release.to_owned(),
                package_version: offer.version.clone(),
                version: Version::leading(&offer.version)?,
                packages: parts
                    .iter()
                    .map(|part| Pin {
                        package: format!("{part}-{release}"),
                        version: offer.version.clone(),
                    })
                    .collect(),
                default: default == Some(&offer.version),
            })
        })
        .collect();
    kernels.sort_by(|a, b| by_package_version(b, a));
    kernels
}

fn by_package_version(a: &Offered, b: &Offered) -> Ordering {
    deb_version::compare_versions(&a.package_version, &b.package_version)
}

/// The kernel of one suite that a prefix (or none) names.
pub fn select<'a>(kernels: &'a [Offered], prefix: Option<&str>) -> Option<&'a Offered> {
    match prefix {
        Some(prefix) => kernels
            .iter()
            .filter(|kernel| starts_with_version(&kernel.package_version, prefix))
            .max_by(|a, b| by_package_version(a, b)),
        None => kernels
            .iter()
            .find(|kernel| kernel.default)
            .or_else(|| kernels.iter().max_by(|a, b| by_package_version(a, b))),
    }
}

/// Whether `prefix` ends where a number of `version` ends: 6.1 is not a prefix of 6.12.
fn starts_with_version(version: &str, prefix: &str) -> bool {
    version
        .strip_prefix(prefix)
        .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
}

/// The newest kernel that satisfies `wanted`: among what stable Debian releases
/// and their security suites ship, else among all.
pub fn newest(kernels: &[Offered], wanted: impl Fn(&Offered) -> bool) -> Option<&Offered> {
    const STABLE: [Suite; 4] = [
        Suite::Bookworm,
        Suite::BookwormSecurity,
        Suite::Trixie,
        Suite::TrixieSecurity,
    ];
    kernels
        .iter()
        .filter(|kernel| wanted(kernel))
        .max_by(|a, b| {
            let stable = |kernel: &Offered| STABLE.contains(&kernel.suite);
            stable(a)
                .cmp(&stable(b))
                .then_with(|| by_package_version(a, b))
        })
}

/// Finds the kernel that `name` means in the archive now.
///
/// `name` must not be a path.
pub fn resolve(apt: &Apt, name: &KernelName) -> Result<Offered> {
    match name {
        KernelName::Suite(suite, prefix) => {
            let kernels = offered(apt, &[*suite])?;
            select(&kernels, prefix.as_deref()).cloned().ok_or_else(|| {
                let versions: Vec<_> = kernels.iter().map(|k| &*k.package_version).collect();
                anyhow!(
                    "{name}: no such kernel; {suite} has {}",
                    versions.join(", ")
                )
            })
        }
        KernelName::UnlockIp(state) => {
            let kernels = offered(apt, &SUITES)?;
            newest(&kernels, |kernel| kernel.unlock_ip() == *state)
                .cloned()
                .ok_or_else(|| anyhow!("the archive has no kernel whose unlock_ip {state}"))
        }
        KernelName::Path { image, .. } => bail!("{} is a path", Path::display(image)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(package: &str, version: &str) -> Offer {
        Offer {
            package: package.into(),
            version: version.into(),
            suite: Suite::BookwormSecurity,
        }
    }

    fn security() -> Vec<Offered> {
        kernels_among(
            Suite::BookwormSecurity,
            &flavour(Arch::Amd64),
            &[
                offer("linux-image-6.1.0-9-cloud-amd64", "6.1.99-1"),
                offer("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2"),
                offer("linux-image-6.12-cloud-amd64", "6.12.117-1~deb12u1"),
                offer(
                    "linux-image-6.12.107+deb12-cloud-amd64",
                    "6.12.107-1~deb12u1",
                ),
                offer(
                    "linux-image-6.12.117+deb12-cloud-amd64",
                    "6.12.117-1~deb12u1",
                ),
                offer("linux-image-cloud-amd64", "6.1.192-2"),
            ],
        )
    }

    #[test]
    fn names_are_read_and_written() {
        for name in [
            "bookworm",
            "bookworm-security:6.12.107",
            "unlock-ip:broken",
            "./bzImage",
            "a/bzImage,b/modules",
        ] {
            assert_eq!(name.parse::<KernelName>().unwrap().to_string(), name);
        }
        for name in ["bookwork", "bookworm-updates", "unlock-ip", ",mods", ""] {
            assert!(name.parse::<KernelName>().is_err(), "{name}");
        }
    }

    #[test]
    fn a_suite_without_prefix_is_its_default_kernel() {
        let kernels = security();
        assert_eq!(kernels.len(), 4);
        assert_eq!(kernels[0].package_version, "6.12.117-1~deb12u1");
        assert_eq!(select(&kernels, None).unwrap().package_version, "6.1.192-2");
    }

    #[test]
    fn a_prefix_ends_at_a_number() {
        let kernels = security();
        let version = |prefix| select(&kernels, Some(prefix)).map(|k| &*k.package_version);
        assert_eq!(version("6.1"), Some("6.1.192-2"));
        assert_eq!(version("6.12"), Some("6.12.117-1~deb12u1"));
        assert_eq!(version("6.12.107"), Some("6.12.107-1~deb12u1"));
        assert_eq!(version("6.12.10"), None);
        for kernel in &kernels {
            let KernelName::Suite(_, prefix) = kernel.name() else {
                panic!("named by a path")
            };
            assert_eq!(select(&kernels, prefix.as_deref()), Some(kernel));
        }
    }

    #[test]
    fn split_packages_are_taken_together() {
        let kernels = kernels_among(
            Suite::BookwormSecurity,
            &flavour(Arch::Amd64),
            &[
                offer("linux-image-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
                offer("linux-binary-7.3.4+deb13-cloud-amd64", "7.3.4-1~bpo13+1"),
            ],
        );
        let packages: Vec<_> = kernels[0].packages.iter().map(|p| &*p.package).collect();
        assert_eq!(
            packages,
            [
                "linux-binary-7.3.4+deb13-cloud-amd64",
                "linux-modules-7.3.4+deb13-cloud-amd64",
                "linux-base-7.3.4+deb13-cloud-amd64"
            ]
        );
    }

    #[test]
    fn unlock_ip_is_known_by_version() {
        let of = |text| UnlockIp::of(Version::leading(text).unwrap());
        for broken in [
            "5.10.250", "6.1.190", "6.12.111", "6.17.13", "6.18.49", "7.0.13",
        ] {
            assert_eq!(of(broken), UnlockIp::Broken, "{broken}");
        }
        for works in ["6.1.191", "6.12.112", "6.18.50", "7.2.12", "7.3.0", "8.0.0"] {
            assert_eq!(of(works), UnlockIp::Works, "{works}");
        }
        assert_eq!(of("7.1.13"), UnlockIp::Unknown);
    }

    #[test]
    fn what_stable_ships_comes_before_what_is_newer() {
        let mut kernels = security();
        kernels.extend(kernels_among(
            Suite::TrixieBackports,
            &flavour(Arch::Amd64),
            &[Offer {
                suite: Suite::TrixieBackports,
                ..offer("linux-image-6.18.15+deb13-cloud-amd64", "6.18.15-1~bpo13+1")
            }],
        ));
        let broken = newest(&kernels, |k| k.unlock_ip() == UnlockIp::Broken).unwrap();
        assert_eq!(broken.package_version, "6.12.107-1~deb12u1");
        let far = newest(&kernels, |k| k.version.minor == 18).unwrap();
        assert_eq!(far.suite, Suite::TrixieBackports);
    }
}
