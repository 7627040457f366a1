//! The suites, and where this machine gets Debian from.

use std::{env, fmt, process::Command, str::FromStr};

use anyhow::{Context as _, Result, anyhow};

use super::{join, run};

/// A Debian suite that this project takes packages from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    Bookworm,
    BookwormUpdates,
    BookwormSecurity,
    BookwormBackports,
    Trixie,
    TrixieSecurity,
    TrixieBackports,
    Forky,
    Sid,
}

impl Suite {
    pub const ALL: [Self; 9] = [
        Self::Bookworm,
        Self::BookwormUpdates,
        Self::BookwormSecurity,
        Self::BookwormBackports,
        Self::Trixie,
        Self::TrixieSecurity,
        Self::TrixieBackports,
        Self::Forky,
        Self::Sid,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::BookwormUpdates => "bookworm-updates",
            Self::BookwormSecurity => "bookworm-security",
            Self::BookwormBackports => "bookworm-backports",
            Self::Trixie => "trixie",
            Self::TrixieSecurity => "trixie-security",
            Self::TrixieBackports => "trixie-backports",
            Self::Forky => "forky",
            Self::Sid => "sid",
        }
    }

    pub(super) fn archive(self) -> Archive {
        match self {
            Self::BookwormSecurity | Self::TrixieSecurity => Archive::Security,
            _ => Archive::Main,
        }
    }
}

impl fmt::Display for Suite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Suite {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|suite| suite.name() == name)
            .ok_or_else(|| anyhow!("{name} is not one of the suites {}", join(Self::ALL)))
    }
}

/// Debian serves its suites from two trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Archive {
    Main,
    Security,
}

/// Where this machine gets Debian from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Archives {
    main: Option<String>,
    security: Option<String>,
    /// Lines of apt configuration that reach them (proxies, certificates).
    pub(super) transport: String,
}

impl Archives {
    pub(super) fn of_this_machine() -> Result<Self> {
        // Without the machine's own package lists, which would be read for nothing.
        let targets = run(Command::new("apt-get").args([
            "indextargets",
            "--no-release-info",
            "--option=Dir::State::lists=/dev/null",
            "--option=Dir::State::status=/dev/null",
            "--format",
            "$(CREATED_BY) $(RELEASE) $(REPO_URI)",
        ]))
        .context("read the machine's apt sources")?;
        let mut archives = Self::from_targets(&targets);
        if let Ok(address) = env::var("NLMFO_DEBIAN_ARCHIVE") {
            archives.main = Some(address);
        }
        if let Ok(address) = env::var("NLMFO_DEBIAN_SECURITY_ARCHIVE") {
            archives.security = Some(address);
        }
        let dump = run(Command::new("apt-config").args(["dump", "Acquire"]))
            .context("read the machine's apt configuration")?;
        archives.transport = transport(&dump);
        Ok(archives)
    }

    /// From lines of `CREATED_BY RELEASE REPO_URI`. Only releases named after a
    /// Debian code name or class count: a third party's repository is no mirror.
    fn from_targets(targets: &str) -> Self {
        const RELEASES: [&str; 9] = [
            "bullseye",
            "bookworm",
            "trixie",
            "forky",
            "sid",
            "oldstable",
            "stable",
            "testing",
            "unstable",
        ];
        let mut archives = Self::default();
        for line in targets.lines() {
            let mut fields = line.split_whitespace();
            let (Some("Packages"), Some(release), Some(address)) =
                (fields.next(), fields.next(), fields.next())
            else {
                continue;
            };
            let (name, kind) = release.split_once('-').unwrap_or((release, ""));
            if !RELEASES.contains(&name) {
                continue;
            }
            let archive = match kind {
                "security" => &mut archives.security,
                "" | "updates" | "backports" => &mut archives.main,
                _ => continue,
            };
            archive.get_or_insert_with(|| address.to_owned());
        }
        archives
    }

    pub(super) fn address(&self, archive: Archive) -> Result<&str> {
        let (address, what, variable) = match archive {
            Archive::Main => (&self.main, "Debian's archive", "NLMFO_DEBIAN_ARCHIVE"),
            Archive::Security => (
                &self.security,
                "Debian's security archive",
                "NLMFO_DEBIAN_SECURITY_ARCHIVE",
            ),
        };
        address.as_deref().ok_or_else(|| {
            anyhow!(
                "this machine's apt configuration names no {what}: set {variable} to its address"
            )
        })
    }
}

/// The settings of `apt-config dump Acquire` that reaching a mirror needs.
fn transport(dump: &str) -> String {
    dump.lines()
        .filter(|line| {
            ["http::", "https::"].iter().any(|wanted| {
                line.strip_prefix("Acquire::")
                    .is_some_and(|rest| rest.starts_with(wanted))
            })
        })
        .map(|line| format!("{line}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_found_among_the_machines_sources() {
        let archives = Archives::from_targets(
            "Packages nodistro http://a.example/node/\n\
             DEP-11 bookworm http://b.example/debian/\n\
             Packages bookworm-security http://s.example/debian-security/\n\
             Packages bookworm-updates http://m.example/debian/\n\
             Packages bookworm http://other.example/debian/\n",
        );
        assert_eq!(
            archives.address(Archive::Main).unwrap(),
            "http://m.example/debian/"
        );
        assert_eq!(
            archives.address(Archive::Security).unwrap(),
            "http://s.example/debian-security/"
        );
    }

    #[test]
    fn a_missing_archive_says_what_to_set() {
        let archives = Archives::from_targets("Packages bookworm http://m.example/debian/\n");
        let error = archives.address(Archive::Security).unwrap_err().to_string();
        assert!(error.contains("NLMFO_DEBIAN_SECURITY_ARCHIVE"), "{error}");
    }

    #[test]
    fn only_transport_settings_are_taken_over() {
        let dump = "Acquire \"\";\nAcquire::http::Proxy \"http://p.example:3142\";\n\
                    Acquire::GzipIndexes \"true\";\nAcquire::https::CaInfo \"/ca.pem\";\n\
                    Acquire::IndexTargets::deb::DEP-11::MetaKey \"x\";\n";
        assert_eq!(
            transport(dump),
            "Acquire::http::Proxy \"http://p.example:3142\";\n\
             Acquire::https::CaInfo \"/ca.pem\";\n"
        );
    }

    #[test]
    fn suites_are_named_as_debian_names_them() {
        for suite in Suite::ALL {
            assert_eq!(suite.name().parse::<Suite>().unwrap(), suite);
        }
        assert!("bookwork".parse::<Suite>().is_err());
    }
}
