//! `/etc/nlmfo.toml`: settings that nlmfo cannot find out by itself.
//!
//! ```toml
//! [vip."10.77.0.1"]
//! names = ["nfs1.example", "nfs1"]   # what clients mount it by
//! ```

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::names;
use crate::files::{self, FileError, LIMIT};

/// The default path.
pub const DEFAULT: &str = "/etc/nlmfo.toml";

/// The content of `/etc/nlmfo.toml`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// By the VIP's address, which is never an IPv4-mapped IPv6 one.
    #[serde(default)]
    vip: BTreeMap<IpAddr, Vip>,
    /// The part of `nlmfo server`, which reads it itself.
    #[serde(default, rename = "server")]
    _server: IgnoredAny,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Vip {
    #[serde(default)]
    names: Vec<String>,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Read(#[from] FileError),
    #[error("the configuration {} is invalid: {reason}", path.display())]
    Wrong { path: PathBuf, reason: String },
}

impl Config {
    /// Reads the named file; if none is named, the default one, which need not exist.
    pub fn read(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT));
        let text = match files::read(path, LIMIT) {
            Err(error) if named.is_none() && error.is_absence() => return Ok(Config::default()),
            other => other?,
        };
        let text = std::str::from_utf8(&text).map_err(|error| error.to_string());
        text.and_then(Config::parse)
            .map_err(|reason| ConfigError::Wrong {
                path: path.to_owned(),
                reason,
            })
    }

    fn parse(text: &str) -> Result<Self, String> {
        let read: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        for (vip, settings) in &read.vip {
            for name in &settings.names {
                names::check(name).map_err(|reason| format!("vip.\"{vip}\".names: {reason}"))?;
            }
        }
        let vips = read.vip.into_iter();
        Ok(Config {
            vip: vips.map(|(vip, set)| (vip.to_canonical(), set)).collect(),
            _server: IgnoredAny,
        })
    }

    /// The VIPs that it names.
    pub fn vips(&self) -> impl Iterator<Item = IpAddr> + use<'_> {
        self.vip.keys().copied()
    }

    /// The names that clients mount this VIP by, as configured.
    pub fn names(&self, vip: IpAddr) -> &[String] {
        self.vip.get(&vip).map_or(&[], |vip| &vip.names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_the_vips_own() {
        let config = Config::parse(
            "[vip.\"10.77.0.1\"]\nnames = [\"nfs1.example\", \"nfs1\"]\n\
             [vip.\"fd77::1\"]\nnames = [\"nfs6\"]\n[vip.\"10.77.0.3\"]\n",
        )
        .unwrap();
        let names = |vip: &str| config.names(vip.parse().unwrap());
        assert_eq!(names("10.77.0.1"), ["nfs1.example", "nfs1"]);
        assert_eq!(names("fd77::1"), ["nfs6"]);
        assert!(names("10.77.0.3").is_empty() && names("10.77.0.2").is_empty());
        assert_eq!(Config::parse("").unwrap(), Config::default());
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, words) in [
            (
                "[vip.\"10.77.0.1\"]\nname = [\"a\"]",
                &["unknown field `name`", "names"][..],
            ),
            ("[vips]", &["unknown field `vips`", "vip"]),
            ("[vip.nfs1]\nnames = []", &["line 1", "IP address"]),
            ("[vip.\"10.77.0.1\"]\nnames = \"a\"", &["line 2"]),
            (
                "[vip.\"10.77.0.1\"]\nnames = [\"a b\"]",
                &["vip.\"10.77.0.1\".names", "a b"],
            ),
            ("[vip", &["line 1"]),
        ] {
            let error = Config::parse(text).unwrap_err();
            assert!(
                words.iter().all(|word| error.contains(word)),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn only_a_file_that_was_named_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nlmfo.toml");
        let error = Config::read(Some(&path)).unwrap_err().to_string();
        assert!(error.contains("nlmfo.toml"), "{error}");
        std::fs::write(&path, "[vip.\"::ffff:10.77.0.1\"]\nnames = [\"a\"]").unwrap();
        let config = Config::read(Some(&path)).unwrap();
        assert_eq!(config.names("10.77.0.1".parse().unwrap()), ["a"]);
    }
}
