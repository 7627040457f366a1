//! The version of a kernel's sources, by which known bugs go.

use std::fmt;
use std::str::FromStr;

/// `major.minor.patch` of upstream's sources. A development kernel without a patch level
/// counts as patch 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    pub major: u32,
    pub minor: u32,
    pub patch: u32,
}

impl Version {
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Version {
            major,
            minor,
            patch,
        }
    }

    /// The running kernel's. `release` (`uname -r`) names an ABI on Debian and Ubuntu;
    /// what was built stands in `version` (`uname -v`) on Debian: `… Debian 6.1.192-1 (…)`.
    pub fn of_kernel(release: &str, version: &str) -> Option<Self> {
        let built = version
            .split_once("Debian ")
            .and_then(|(_, rest)| rest.split_whitespace().next()?.parse().ok());
        built.or_else(|| release.parse().ok())
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a kernel version")]
pub struct NoVersion(String);

impl FromStr for Version {
    type Err = NoVersion;

    /// Reads the numbers that the text begins with.
    fn from_str(text: &str) -> Result<Self, NoVersion> {
        let end = text
            .find(|character: char| !character.is_ascii_digit() && character != '.')
            .unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(str::parse::<u32>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor)), patch) => Ok(Version {
                major,
                minor,
                patch: patch.and_then(Result::ok).unwrap_or(0),
            }),
            _ => Err(NoVersion(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_debian_built_stands_in_the_version() {
        assert_eq!(
            Version::of_kernel(
                "6.1.0-56-cloud-amd64",
                "#1 SMP PREEMPT_DYNAMIC Debian 6.1.192-1 (2026-11-01)"
            ),
            Some(Version::new(6, 1, 192))
        );
    }

    #[test]
    fn elsewhere_the_release_tells() {
        let of = |release| Version::of_kernel(release, "#3 SMP Mon Nov 2");
        assert_eq!(of("6.12.95"), Some(Version::new(6, 12, 95)));
        assert_eq!(of("7.3.0-rc4+"), Some(Version::new(7, 3, 0)));
        assert_eq!(of("7.3-rc4"), Some(Version::new(7, 3, 0)));
        assert_eq!(of("next"), None);
    }
}
