//! The version of a kernel's sources, which decides its known bugs.

use std::fmt;

/// `major.minor.patch` of upstream's sources. A development kernel without a patch level
/// counts as patch 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version {
    /// 6 of 6.12.107.
    pub major: u32,
    /// 12 of 6.12.107.
    pub minor: u32,
    /// 107 of 6.12.107; 0 if there is none.
    pub patch: u32,
}

impl Version {
    /// `major.minor.patch`.
    pub const fn new(major: u32, minor: u32, patch: u32) -> Self {
        Version {
            major,
            minor,
            patch,
        }
    }

    /// The stable series: 6.12 for 6.12.107.
    pub const fn series(self) -> (u32, u32) {
        (self.major, self.minor)
    }

    /// Reads the numbers at the start of a Debian version, a release or a plain version:
    /// `6.12.107-1~deb12u1`, `7.3.4+deb13-cloud-amd64`, `7.3-rc4`. `None` if there are fewer than
    /// two.
    pub fn leading(text: &str) -> Option<Self> {
        let end = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let mut numbers = text[..end].split('.').map(|number| number.parse().ok());
        let (major, minor) = (numbers.next()??, numbers.next()??);
        Some(Version::new(
            major,
            minor,
            numbers.next().flatten().unwrap_or(0),
        ))
    }

    /// The version of a kernel. `release` (`uname -r`) names an ABI on Debian and Ubuntu;
    /// `version` (`uname -v`) has the version of the sources on Debian: `… Debian 6.1.192-1 (…)`.
    /// `None` if neither begins with a version.
    pub fn of_kernel(release: &str, version: &str) -> Option<Self> {
        let built = version
            .split_once("Debian ")
            .and_then(|(_, rest)| Version::leading(rest));
        built.or_else(|| Version::leading(release))
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
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

    #[test]
    fn versions_start_debian_versions_and_releases() {
        let read = |text| Version::leading(text).map(|v| v.to_string());
        assert_eq!(read("6.12.107-1~deb12u1").as_deref(), Some("6.12.107"));
        assert_eq!(read("7.3.4+deb13-cloud-amd64").as_deref(), Some("7.3.4"));
        assert_eq!(read("6.18-rc1").as_deref(), Some("6.18.0"));
        assert_eq!(read("next"), None);
        assert_eq!(read("6"), None);
    }
}
