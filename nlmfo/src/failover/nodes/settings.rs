//! The settings of this node.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::{Setting, Topic};
use crate::causes::chain;
use crate::kernel::exports::{self, Export};
use crate::kernel::nfsd::Nfsd;
use crate::kernel::{self, netns};
use crate::notify::config::Config;
use crate::server::description::{self, Description};
use crate::server::served;
use crate::times::now_milliseconds;

/// The program that is asked for the version of nfs-utils: every server has it.
const STATD: &str = "rpc.statd";

/// A node, as another one sees it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeFacts {
    pub name: String,
    /// The ID of this boot. Two answers with the same ID are from the same node.
    pub boot: String,
    /// The time of day in milliseconds since 1970.
    pub clock_ms: u64,
    pub settings: Vec<Setting>,
    /// What could not be read.
    pub unread: Vec<String>,
}

impl NodeFacts {
    /// Reads what is set up on this node; `nlmfo` is our own version.
    pub fn gather(nlmfo: &str) -> Self {
        let mut settings = vec![Setting::new(Topic::Nlmfo, "", nlmfo)];
        let mut unread = Vec::new();
        let mut boot = String::new();
        match kernel::release() {
            Ok(release) => settings.push(Setting::new(Topic::Kernel, "", release)),
            Err(error) => unread.push(format!("the kernel's release: {error}")),
        }
        match kernel::boot() {
            Ok(id) => boot = id,
            Err(error) => unread.push(format!("the ID of this boot: {error}")),
        }
        match nfs_utils() {
            Ok(version) => settings.push(Setting::new(Topic::NfsUtils, "", version)),
            Err(error) => unread.push(format!("the version of nfs-utils: {error}")),
        }
        settings.extend(of_nfsd());
        match exports::table() {
            Ok(table) => settings.extend(of_exports(&table)),
            Err(error) => unread.push(format!("the exports: {error}")),
        }
        match Config::read(None) {
            Ok(config) => settings.extend(of_names(&config)),
            Err(error) => unread.push(chain(&error)),
        }
        match description::read_all() {
            Ok(all) => settings.extend(all.values().flat_map(of_server)),
            Err(error) => unread.push(chain(&error)),
        }
        NodeFacts {
            name: netns::node(),
            boot,
            clock_ms: now_milliseconds(),
            settings,
            unread,
        }
    }

    /// The value of a setting of the node itself.
    pub fn value(&self, topic: Topic) -> Option<&str> {
        let found = self.settings.iter().find(|setting| setting.topic == topic);
        found.map(|setting| setting.value.as_str())
    }
}

/// `rpc.statd version 2.6.2`
fn nfs_utils() -> Result<String, String> {
    let asked = Command::new(STATD).arg("--version").output();
    let asked = asked.map_err(|error| format!("{STATD}: {error}"))?;
    let said = [asked.stdout, asked.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let version = version_in(&said);
    version.ok_or_else(|| format!("{STATD} --version names none"))
}

fn version_in(said: &str) -> Option<String> {
    let mut words = said.split_ascii_whitespace();
    words.find(|word| *word == "version")?;
    words.next().map(str::to_owned)
}

/// Empty if nfsd does not run, which `nlmfo check` reports.
fn of_nfsd() -> Vec<Setting> {
    let Ok(nfsd) = Nfsd::mounted() else {
        return Vec::new();
    };
    if !nfsd.threads().is_ok_and(|threads| threads > 0) {
        return Vec::new();
    }
    let versions = nfsd.versions().map(|versions| {
        let versions = served(&versions);
        Setting::new(Topic::NfsVersions, "", joined(versions.iter()))
    });
    let lease = nfsd.lease();
    let lease =
        lease.map(|lease| Setting::new(Topic::Nfs4Lease, "", format!("{} s", lease.as_secs())));
    versions.into_iter().chain(lease).collect()
}

fn joined(words: impl Iterator<Item = impl ToString>) -> String {
    let words: Vec<String> = words.map(|word| word.to_string()).collect();
    words.join(", ")
}

/// For each directory its fsid, and the options for each of its clients.
fn of_exports(table: &[Export]) -> Vec<Setting> {
    const FSID: &str = "fsid=";
    let mut by_folder: BTreeMap<String, (BTreeSet<&str>, BTreeSet<String>)> = BTreeMap::new();
    for export in table {
        let folder = export.folder.display().to_string();
        let (fsids, options) = by_folder.entry(folder).or_default();
        let all: BTreeSet<&str> = export.options.split(',').collect();
        fsids.extend(all.iter().filter_map(|option| option.strip_prefix(FSID)));
        let rest = all.into_iter().filter(|option| !option.starts_with(FSID));
        let rest: Vec<&str> = rest.collect();
        options.insert(format!("{}({})", export.client, rest.join(",")));
    }
    let by_folder = by_folder.into_iter();
    let settings = by_folder.flat_map(|(folder, (fsids, options))| {
        [
            Setting::new(Topic::Fsid, &folder, joined(fsids.into_iter())),
            Setting::new(Topic::ExportOptions, &folder, joined(options.into_iter())),
        ]
    });
    settings.collect()
}

fn of_names(config: &Config) -> impl Iterator<Item = Setting> + use<'_> {
    let named = config.vips().filter(|vip| !config.names(*vip).is_empty());
    named.map(|vip| {
        let mut names = config.names(vip).to_vec();
        names.sort();
        Setting::new(Topic::Names, vip.to_string(), names.join(", "))
    })
}

/// The settings of a server of its own that must be the same wherever it starts.
pub fn of_server(server: &Description) -> Vec<Setting> {
    let of = |topic, value: String| Setting::new(topic, &server.name, value);
    let sorted = |words: &mut dyn Iterator<Item = String>| {
        let words: BTreeSet<String> = words.collect();
        joined(words.into_iter())
    };
    let filesystems = || server.filesystems.iter();
    vec![
        of(Topic::Server, "described".into()),
        of(
            Topic::ServerVips,
            sorted(&mut server.vips.iter().map(ToString::to_string)),
        ),
        // Clients compare it as bytes.
        of(Topic::ServerScope, server.scope.clone()),
        of(Topic::ServerVersions, joined(server.versions.iter())),
        of(
            Topic::ServerExports,
            sorted(&mut server.exports.iter().map(|export| {
                let words: Vec<&str> = export.split_ascii_whitespace().collect();
                words.join(" ")
            })),
        ),
        of(Topic::ServerState, server.state.display().to_string()),
        of(
            Topic::ServerFilesystems,
            sorted(&mut filesystems().map(|one| {
                let path = one.path.display();
                format!("{path} ({} {})", one.kind, one.options).replace(" )", ")")
            })),
        ),
        of(
            Topic::ServerDevices,
            sorted(&mut filesystems().map(|one| one.device.display().to_string())),
        ),
        of(
            Topic::ServerLease,
            format!("{} s", server.lease.as_secs_f64()),
        ),
        of(
            Topic::ServerGrace,
            format!("{} s", server.grace.as_secs_f64()),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::nodes::{Weight, compare};

    #[test]
    fn the_version_of_nfs_utils_is_the_word_behind_version() {
        assert_eq!(
            version_in("rpc.statd version 2.6.2\n").as_deref(),
            Some("2.6.2")
        );
        assert_eq!(version_in("no such option"), None);
    }

    #[test]
    fn exports_differ_by_their_fsid_and_by_their_options_but_not_by_their_order() {
        let export = |client: &str, options: &str| Export {
            folder: "/srv".into(),
            client: client.into(),
            options: options.into(),
        };
        let here = of_exports(&[
            export("*", "rw,sync,fsid=1"),
            export("10.0.0.1", "ro,fsid=1"),
        ]);
        let same = of_exports(&[
            export("10.0.0.1", "fsid=1,ro"),
            export("*", "fsid=1,sync,rw"),
        ]);
        assert_eq!(here, same);
        let none = of_exports(&[export("*", "rw,sync"), export("10.0.0.1", "ro")]);
        let [difference] = &compare(&here, &none)[..] else {
            panic!("{here:?} {none:?}");
        };
        assert_eq!(
            (difference.topic, difference.weight),
            (Topic::Fsid, Weight::Loss)
        );
        let read_only = of_exports(&[
            export("*", "ro,sync,fsid=1"),
            export("10.0.0.1", "ro,fsid=1"),
        ]);
        let [difference] = &compare(&here, &read_only)[..] else {
            panic!("{here:?} {read_only:?}");
        };
        assert_eq!(difference.topic, Topic::ExportOptions);
        // A cluster may export it only where the VIP is.
        let [difference] = &compare(&here, &[])[..] else {
            panic!("{here:?}");
        };
        assert_eq!(
            (difference.topic, difference.weight),
            (Topic::Fsid, Weight::Note)
        );
    }

    #[test]
    fn a_server_is_compared_by_what_its_clients_depend_on() {
        let described = |change: &[(&str, &str)]| {
            let mut text = r#"
                [server.mail]
                vips = ["10.77.0.1/16", "fd77::1/64"]
                link = { kind = "macvlan", parent = "eth0" }
                filesystem = { device = "/dev/drbd0", path = "/srv/mail", type = "ext4" }
                exports = ["/srv/mail *(rw,fsid=1)"]
                scope = "mail"
                state = "/srv/mail/.nlmfo"
                lease = "15s"
            "#
            .to_owned();
            for (from, to) in change {
                assert!(text.contains(from), "{from}");
                text = text.replace(from, to);
            }
            let all = description::parse(&text).unwrap();
            all.iter().flat_map(of_server).collect::<Vec<_>>()
        };
        let here = described(&[]);
        let harmless = described(&[
            (
                "\"10.77.0.1/16\", \"fd77::1/64\"",
                "\"fd77::1/64\", \"10.77.0.1/16\"",
            ),
            ("eth0", "bond0"),
            ("mail *", "mail   *"),
        ]);
        assert_eq!(compare(&here, &harmless), []);
        for (from, to, topic, weight) in [
            (
                "scope = \"mail\"",
                "scope = \"Mail\"",
                Topic::ServerScope,
                Weight::Loss,
            ),
            ("fsid=1", "fsid=2", Topic::ServerExports, Weight::Loss),
            ("/16", "/24", Topic::ServerVips, Weight::Loss),
            ("/.nlmfo", "/state", Topic::ServerState, Weight::Loss),
            ("ext4", "xfs", Topic::ServerFilesystems, Weight::Loss),
            ("drbd0", "drbd1", Topic::ServerDevices, Weight::Note),
            ("15s", "30s", Topic::ServerLease, Weight::Note),
            (
                "lease = \"15s\"",
                "versions = [3, 4.1]\nlease = \"15s\"",
                Topic::ServerVersions,
                Weight::Loss,
            ),
        ] {
            let found = compare(&here, &described(&[(from, to)]));
            let [difference] = &found[..] else {
                panic!("{from}: {found:?}");
            };
            assert_eq!(
                (difference.topic, difference.weight),
                (topic, weight),
                "{from}"
            );
        }
        let [difference] = &compare(&here, &[])[..] else {
            panic!("it is described here only");
        };
        assert_eq!(
            (difference.topic, difference.weight),
            (Topic::Server, Weight::Loss)
        );
    }
}
