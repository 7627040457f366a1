//! The configuration of a server of its own, in TOML.
//!
//! ```toml
//! [server.mail]
//! vips       = ["10.77.0.1/16", "fd77::1/64"]
//! link       = { kind = "macvlan", parent = "eth0" }
//! filesystem = { device = "/dev/drbd0", path = "/srv/mail", type = "ext4" }
//! exports    = ["/srv/mail *(rw,no_subtree_check,fsid=1)"]
//! scope      = "mail-nfs"
//! state      = "/srv/mail/.nlmfo"
//! ```

mod values;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

use self::values::{absolute, check_export, time, version};
use crate::files::{self, FileError, LIMIT};

/// Where servers are configured.
pub const FILE: &str = "/etc/nlmfo.toml";
pub const FOLDER: &str = "/etc/nlmfo/servers.d";

/// The name of the node's own server for `--server`.
pub const NODE: &str = "node";

/// `HOST_NAME_MAX`: the scope is a host name in the server's UTS namespace.
const LONGEST_NAME: usize = 64;

/// Why the configuration of a server cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    #[error(transparent)]
    Read(#[from] FileError),
    #[error("cannot list {}", path.display())]
    List { path: PathBuf, source: io::Error },
    #[error("{}: {reason}", path.display())]
    Wrong { path: PathBuf, reason: String },
    #[error("[server.{name}] is in {} and in {}", first.display(), second.display())]
    Twice {
        name: String,
        first: PathBuf,
        second: PathBuf,
    },
    #[error("the servers {one} and {other} have the same {what}: each needs its own")]
    Shared {
        one: String,
        other: String,
        what: String,
    },
    #[error("no server {name:?} is configured in {FILE} or {FOLDER}; there are: {}", known.join(", "))]
    Unknown { name: String, known: Vec<String> },
}

/// One server: addresses that move together, and what is served through them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub name: String,
    pub vips: Vec<Vip>,
    pub link: Link,
    pub gateways: Vec<IpAddr>,
    pub filesystems: Vec<Filesystem>,
    pub exports: Vec<String>,
    /// The server's identity for NFSv4 clients; the same on every node.
    pub scope: String,
    /// Records of clients, on storage that moves along.
    pub state: PathBuf,
    /// In order, each once.
    pub versions: Vec<Version>,
    pub threads: u32,
    pub lease: Duration,
    pub grace: Duration,
}

/// A virtual server address and its prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "String")]
pub struct Vip {
    pub address: IpAddr,
    pub prefix: u8,
}

impl From<Vip> for String {
    fn from(vip: Vip) -> String {
        vip.to_string()
    }
}

impl fmt::Display for Vip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Vip {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is not an address with a prefix length, like 10.77.0.1/16");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let prefix: u8 = prefix.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        match prefix <= longest && !address.is_unspecified() && !address.is_multicast() {
            true => Ok(Vip { address, prefix }),
            false => Err(wrong()),
        }
    }
}

/// How the server is connected to the network.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Link {
    /// An interface with a hardware address of its own on one of the node's.
    Macvlan { parent: String },
    /// One that shares the hardware address.
    Ipvlan { parent: String },
    /// A pair of interfaces, whose outer one is a port of the node's bridge.
    Veth { bridge: String },
    /// An interface of a network namespace that exists (`ip netns add`).
    Netns { name: String, interface: String },
}

/// A filesystem that is mounted for the server, and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Filesystem {
    pub device: PathBuf,
    pub path: PathBuf,
    #[serde(rename = "type")]
    pub kind: String,
    #[serde(default)]
    pub options: String,
}

/// A version of NFS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub enum Version {
    V3,
    V4(u8),
}

impl Version {
    pub const ALL: [Version; 4] = [Version::V3, Version::V4(0), Version::V4(1), Version::V4(2)];
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.to_string()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Version::V3 => f.write_str("3"),
            Version::V4(minor) => write!(f, "4.{minor}"),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    server: BTreeMap<String, Raw>,
    /// Names of VIPs, see [`crate::notify`].
    #[serde(default, rename = "vip")]
    _vip: IgnoredAny,
}

/// As it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    vips: Vec<String>,
    link: Link,
    #[serde(default)]
    gateways: Vec<IpAddr>,
    #[serde(default, deserialize_with = "one_or_more")]
    filesystem: Vec<Filesystem>,
    exports: Vec<String>,
    scope: String,
    state: PathBuf,
    #[serde(default = "all_versions")]
    versions: Vec<toml::Value>,
    #[serde(default = "threads")]
    threads: u32,
    #[serde(default = "lease")]
    lease: String,
    #[serde(default = "grace")]
    grace: String,
}

fn all_versions() -> Vec<toml::Value> {
    vec![
        toml::Value::Integer(3),
        toml::Value::Float(4.0),
        toml::Value::Float(4.1),
        toml::Value::Float(4.2),
    ]
}

fn threads() -> u32 {
    8
}

fn lease() -> String {
    "15s".into()
}

fn grace() -> String {
    "60s".into()
}

/// A table, or a list of tables.
fn one_or_more<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    from: D,
) -> Result<Vec<T>, D::Error> {
    struct OneOrMore<T>(PhantomData<T>);
    impl<'de, T: Deserialize<'de>> Visitor<'de> for OneOrMore<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table or a list of tables")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vec<T>, A::Error> {
            Ok(vec![T::deserialize(MapAccessDeserializer::new(map))?])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
            let mut all = Vec::new();
            while let Some(one) = list.next_element()? {
                all.push(one);
            }
            Ok(all)
        }
    }
    from.deserialize_any(OneOrMore(PhantomData))
}

/// All servers that are configured on this node, by name.
pub fn read_all() -> Result<BTreeMap<String, Description>, DescriptionError> {
    let mut paths = vec![PathBuf::from(FILE)];
    match fs::read_dir(FOLDER) {
        Ok(entries) => {
            let files = entries.flatten().map(|entry| entry.path());
            let ours = |path: &PathBuf| path.extension().is_some_and(|ending| ending == "toml");
            let mut files: Vec<PathBuf> = files.filter(ours).collect();
            files.sort();
            paths.extend(files);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => {
            let path = FOLDER.into();
            return Err(DescriptionError::List { path, source });
        }
    }
    let mut all: BTreeMap<String, (PathBuf, Description)> = BTreeMap::new();
    for path in paths {
        let text = match files::read(&path, LIMIT) {
            Err(error) if error.is_absence() => continue,
            other => other?,
        };
        let text = String::from_utf8_lossy(&text);
        let found = parse(&text).map_err(|reason| DescriptionError::Wrong {
            path: path.clone(),
            reason,
        })?;
        for description in found {
            let name = description.name.clone();
            if let Some((first, _)) = all.insert(name.clone(), (path.clone(), description)) {
                let second = path;
                return Err(DescriptionError::Twice {
                    name,
                    first,
                    second,
                });
            }
        }
    }
    let all: BTreeMap<String, Description> = all
        .into_iter()
        .map(|(name, (_, described))| (name, described))
        .collect();
    ensure_apart(&all)?;
    Ok(all)
}

/// The server of this name.
pub fn read(name: &str) -> Result<Description, DescriptionError> {
    let mut all = read_all()?;
    match all.remove(name) {
        Some(description) => Ok(description),
        None => Err(DescriptionError::Unknown {
            name: name.to_owned(),
            known: all.into_keys().collect(),
        }),
    }
}

/// An error if two servers have an address, a device, a scope or a state directory in common:
/// their clients would take one for the other, or their records would mix.
fn ensure_apart(all: &BTreeMap<String, Description>) -> Result<(), DescriptionError> {
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for (name, one) in all {
        let vips = (one.vips.iter()).map(|vip| format!("VIP {}", vip.address));
        let devices = one.filesystems.iter();
        let devices = devices.map(|found| format!("device {}", found.device.display()));
        let scope = format!("scope {}", one.scope.to_ascii_lowercase());
        let state = format!("state directory {}", one.state.display());
        for what in vips.chain(devices).chain([scope, state]) {
            if let Some(other) = owners.insert(what.clone(), name) {
                let (one, other) = (other.to_owned(), name.clone());
                return Err(DescriptionError::Shared { one, other, what });
            }
        }
    }
    Ok(())
}

/// The servers in a configuration; an error says what is wrong with it.
pub fn parse(text: &str) -> Result<Vec<Description>, String> {
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    let described = file.server.into_iter().map(|(name, raw)| {
        let named = format!("server.{name}");
        raw.check(name)
            .map_err(|reason| format!("{named}.{reason}"))
    });
    described.collect()
}

impl Raw {
    fn check(self, name: String) -> Result<Description, String> {
        let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 32 || !name.chars().all(is_name) {
            return Err("NAME: a name has up to 32 of a to z, 0 to 9 and -".into());
        }
        if name == NODE {
            return Err("NAME: `node` stands for the node's own server".into());
        }
        let vips: Vec<Vip> = (self.vips.iter())
            .map(|text| text.parse().map_err(|reason| format!("vips: {reason}")))
            .collect::<Result<_, _>>()?;
        if vips.is_empty() {
            return Err("vips: at least one is needed".into());
        }
        for filesystem in &self.filesystem {
            for path in [&filesystem.device, &filesystem.path] {
                absolute("filesystem", path)?;
            }
            if filesystem.path == Path::new("/") {
                return Err("filesystem: the root directory is the node's".into());
            }
        }
        absolute("state", &self.state)?;
        let is_host = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.' || c == '_';
        let scope = &self.scope;
        if scope.is_empty() || scope.len() > LONGEST_NAME || !scope.chars().all(is_host) {
            return Err(format!("scope: {scope:?} cannot be a host name"));
        }
        if self.exports.is_empty() {
            return Err("exports: at least one is needed".into());
        }
        for export in &self.exports {
            check_export(export).map_err(|reason| format!("exports: {reason}"))?;
        }
        let mut versions: Vec<Version> = Vec::new();
        for value in &self.versions {
            versions.extend(version(value).map_err(|reason| format!("versions: {reason}"))?);
        }
        versions.sort_unstable();
        versions.dedup();
        if versions.is_empty() {
            return Err("versions: at least one is needed".into());
        }
        let (lease, grace) = (time("lease", &self.lease)?, time("grace", &self.grace)?);
        if grace < lease {
            return Err(format!(
                "grace: {} is shorter than the lease ({}): clients that are idle could not reclaim",
                self.grace, self.lease
            ));
        }
        if self.threads == 0 {
            return Err("threads: at least one is needed".into());
        }
        Ok(Description {
            name,
            vips,
            link: self.link,
            gateways: self.gateways,
            filesystems: self.filesystem,
            exports: self.exports,
            scope: self.scope,
            state: self.state,
            versions,
            threads: self.threads,
            lease,
            grace,
        })
    }
}

impl Description {
    pub fn serves_v3(&self) -> bool {
        self.versions.contains(&Version::V3)
    }

    pub fn serves_v4(&self) -> bool {
        self.versions.iter().any(|version| *version > Version::V3)
    }

    pub fn has_vip(&self, vip: IpAddr) -> bool {
        self.vips.iter().any(|own| own.address == vip)
    }

    /// The directories that are exported.
    pub fn exported(&self) -> impl Iterator<Item = &Path> {
        let paths = self
            .exports
            .iter()
            .filter_map(|line| line.split_whitespace().next());
        paths.map(Path::new)
    }
}

#[cfg(test)]
mod tests;
