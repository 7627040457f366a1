//! Two nodes side by side: the settings that matter to a VIP that moves from one to the other, and
//! what differs.

pub mod outlook;
pub mod page;
pub mod peer;
pub mod settings;
pub mod side;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What a setting is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Topic {
    /// Of the node.
    Nlmfo,
    Kernel,
    NfsUtils,
    /// NFS versions that the node's own server serves.
    NfsVersions,
    Nfs4Lease,
    /// Of an exported directory.
    Fsid,
    ExportOptions,
    /// The names that clients mount a VIP by.
    Names,
    /// Of a server of its own. The first one says that the server is configured.
    Server,
    ServerVips,
    ServerScope,
    ServerVersions,
    ServerExports,
    ServerState,
    ServerFilesystems,
    ServerDevices,
    ServerLease,
    ServerGrace,
    /// Known only to a newer nlmfo.
    #[serde(other)]
    Unknown,
}

/// One setting of a node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Setting {
    pub topic: Topic,
    /// A directory, a VIP or a server; empty if it is of the node.
    #[serde(default)]
    pub of: String,
    pub value: String,
}

impl Setting {
    pub fn new(topic: Topic, of: impl Into<String>, value: impl Into<String>) -> Self {
        Setting {
            topic,
            of: of.into(),
            value: value.into(),
        }
    }
}

/// How much a difference matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// A move may lose locks.
    Loss,
    /// Worth knowing.
    Note,
}

/// A difference between two nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    pub weight: Weight,
    pub topic: Topic,
    pub of: String,
    /// Null where the setting is absent.
    pub here: Option<String>,
    pub there: Option<String>,
    /// What follows from it, and what to do.
    pub remedy: &'static str,
}

/// What a difference of a topic means. `None`: nothing.
struct Rule {
    what: &'static str,
    differs: (Weight, &'static str),
    /// If only one node has the setting.
    alone: Option<(Weight, &'static str)>,
}

/// A rule for settings that are compared only if both nodes have them.
const fn rule(what: &'static str, weight: Weight, remedy: &'static str) -> Rule {
    Rule {
        what,
        differs: (weight, remedy),
        alone: None,
    }
}

impl Topic {
    fn rule(self) -> Option<Rule> {
        use Weight::{Loss, Note};
        let names = "clients ignore a notification under another name: give both nodes the same names in \
                     /etc/nlmfo.toml";
        Some(match self {
            Topic::Nlmfo => rule("nlmfo", Note, "install the same version on both nodes"),
            Topic::Kernel => rule(
                "kernel",
                Note,
                "what nlmfo can do depends on the kernel: run `nlmfo check` on both nodes",
            ),
            Topic::NfsUtils => rule("nfs-utils", Note, "install the same version on both nodes"),
            Topic::NfsVersions => rule(
                "NFS versions",
                Loss,
                "clients of a version that is not served after the move lose their locks: set the same \
                 versions in section [nfsd] of /etc/nfs.conf",
            ),
            Topic::Nfs4Lease => rule(
                "NFSv4 lease",
                Note,
                "set the same lease-time in section [nfsd] of /etc/nfs.conf",
            ),
            Topic::Fsid => Rule {
                what: "fsid of",
                differs: (
                    Loss,
                    "file handles become stale after a move, and locks are lost: export it with the same \
                     fsid= on both nodes",
                ),
                alone: Some((
                    Note,
                    "it is exported on one node only now: export it on the other one before clients are \
                     notified",
                )),
            },
            Topic::ExportOptions => rule(
                "export options of",
                Loss,
                "clients may be refused after a move: export it with the same options on both nodes",
            ),
            Topic::Names => Rule {
                what: "names of",
                differs: (Loss, names),
                alone: Some((Loss, names)),
            },
            Topic::Server => Rule {
                what: "server",
                differs: (Note, ""),
                alone: Some((
                    Loss,
                    "it cannot move to a node that does not know it: configure it in /etc/nlmfo.toml on both \
                     nodes",
                )),
            },
            Topic::ServerVips => rule(
                "VIPs of server",
                Loss,
                "clients do not find the server after a move: configure the same VIPs on both nodes",
            ),
            Topic::ServerScope => rule(
                "scope of server",
                Loss,
                "NFSv4 clients do not reclaim from a server with another scope: configure the same scope on \
                 both nodes",
            ),
            Topic::ServerVersions => rule(
                "NFS versions of server",
                Loss,
                "clients of a version that is not served after a move lose their locks: configure the same \
                 versions on both nodes",
            ),
            Topic::ServerExports => rule(
                "exports of server",
                Loss,
                "another fsid makes file handles stale, other options may refuse clients: configure the same \
                 exports on both nodes",
            ),
            Topic::ServerState => rule(
                "state directory of server",
                Loss,
                "the records of clients are not found after a move: configure the same directory, on storage \
                 that moves along",
            ),
            Topic::ServerFilesystems => rule(
                "filesystems of server",
                Loss,
                "the server does not start or serves other files after a move: configure the same filesystems \
                 on both nodes",
            ),
            Topic::ServerDevices => rule(
                "devices of server",
                Note,
                "make sure that these are the same storage",
            ),
            Topic::ServerLease => rule("lease of server", Note, "configure the same on both nodes"),
            Topic::ServerGrace => rule(
                "grace of server",
                Note,
                "a grace that is shorter than the lease loses locks: configure the same on both nodes",
            ),
            Topic::Unknown => return None,
        })
    }
}

/// The differences, those that lose locks first.
pub fn compare(here: &[Setting], there: &[Setting]) -> Vec<Difference> {
    let map = |settings: &[Setting]| -> BTreeMap<(Topic, String), String> {
        let settings = settings.iter().cloned();
        settings
            .map(|one| ((one.topic, one.of), one.value))
            .collect()
    };
    let (here, there) = (map(here), map(there));
    let mut keys: Vec<_> = here.keys().chain(there.keys()).collect();
    keys.sort();
    keys.dedup();
    let mut differences = Vec::new();
    for key in keys {
        let (topic, of) = key;
        let Some(rule) = topic.rule() else {
            continue;
        };
        let (ours, theirs) = (here.get(key), there.get(key));
        let meaning = match (ours, theirs) {
            (Some(ours), Some(theirs)) if ours == theirs => None,
            (Some(_), Some(_)) => Some(rule.differs),
            _ => rule.alone,
        };
        if let Some((weight, remedy)) = meaning {
            differences.push(Difference {
                weight,
                topic: *topic,
                of: of.clone(),
                here: ours.cloned(),
                there: theirs.cloned(),
                remedy,
            });
        }
    }
    differences.sort_by_key(|difference| difference.weight);
    differences
}

/// Maximum difference of two clocks that is not reported.
const CLOCKS: Duration = Duration::from_secs(2);

/// How far the other node's clock is from ours, if too far. It was read between two reads of ours; all
/// are in milliseconds since 1970.
pub fn clock_difference(asked: u64, answered: u64, there: u64) -> Option<Duration> {
    let off = match () {
        () if there < asked => asked - there,
        () if there > answered => there - answered,
        () => 0,
    };
    let off = Duration::from_millis(off);
    (off > CLOCKS).then_some(off)
}

impl Difference {
    /// Whether a move may lose locks.
    pub fn loses(&self) -> bool {
        self.weight == Weight::Loss
    }

    /// The line with its mark.
    pub fn marked(&self) -> String {
        match self.loses() {
            true => format!("✗ {self}"),
            false => format!("! {self}"),
        }
    }
}

impl fmt::Display for Difference {
    /// One line, without a mark.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = self.topic.rule().map_or("", |rule| rule.what);
        f.write_str(what)?;
        if !self.of.is_empty() {
            write!(f, " {}", self.of)?;
        }
        let value = |value: &Option<String>| match value.as_deref() {
            None | Some("") => "none".to_owned(),
            Some(value) => value.to_owned(),
        };
        let (here, there) = (value(&self.here), value(&self.there));
        write!(f, ": {here} here, {there} there; {}", self.remedy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(all: &[(Topic, &str, &str)]) -> Vec<Setting> {
        let all = all.iter();
        all.map(|&(topic, of, value)| Setting::new(topic, of, value))
            .collect()
    }

    #[test]
    fn what_is_the_same_or_of_one_node_alone_is_no_difference() {
        let one = settings(&[
            (Topic::Kernel, "", "6.1"),
            (Topic::Fsid, "/srv", "1"),
            (Topic::NfsVersions, "", "3"),
            (Topic::Unknown, "", "a"),
        ]);
        assert_eq!(compare(&one, &one), []);
        let fewer = settings(&[(Topic::Fsid, "/srv", "1"), (Topic::Unknown, "", "b")]);
        assert_eq!(compare(&one, &fewer), []);
    }

    #[test]
    fn what_loses_locks_comes_first_and_is_said_with_both_values() {
        let here = settings(&[
            (Topic::Kernel, "", "6.1"),
            (Topic::Fsid, "/srv/a", "1"),
            (Topic::Fsid, "/srv/b", "2"),
            (Topic::ServerScope, "mail", "mail"),
            (Topic::Names, "10.77.0.1", "nfs1"),
        ]);
        let there = settings(&[
            (Topic::Kernel, "", "7.3"),
            (Topic::Fsid, "/srv/a", ""),
            (Topic::ServerScope, "mail", "b"),
        ]);
        let found = compare(&here, &there);
        let weights: Vec<(Weight, Topic)> =
            found.iter().map(|one| (one.weight, one.topic)).collect();
        assert_eq!(
            weights,
            [
                (Weight::Loss, Topic::Fsid),
                (Weight::Loss, Topic::Names),
                (Weight::Loss, Topic::ServerScope),
                (Weight::Note, Topic::Kernel),
                (Weight::Note, Topic::Fsid),
            ]
        );
        let text = found[0].to_string();
        assert!(
            text.starts_with("fsid of /srv/a: 1 here, none there; file handles"),
            "{text}"
        );
        assert!(found[1].to_string().contains("nfs1 here, none there"));
        assert!(
            found[3]
                .to_string()
                .starts_with("kernel: 6.1 here, 7.3 there; ")
        );
    }

    #[test]
    fn every_topic_has_a_rule_and_its_own_words() {
        for topic in ["nlmfo", "server_scope", "export_options"] {
            let topic: Topic = serde_json::from_value(topic.into()).unwrap();
            assert!(topic.rule().is_some());
        }
        let newer: Topic = serde_json::from_value("moon_phase".into()).unwrap();
        assert_eq!(newer, Topic::Unknown);
    }

    #[test]
    fn a_clock_is_compared_with_the_time_of_the_question_and_of_the_answer() {
        assert_eq!(clock_difference(10_000, 11_000, 10_500), None);
        assert_eq!(clock_difference(10_000, 11_000, 9_000), None);
        assert_eq!(
            clock_difference(10_000, 11_000, 5_000),
            Some(Duration::from_secs(5))
        );
        assert_eq!(
            clock_difference(10_000, 11_000, 15_000),
            Some(Duration::from_secs(4))
        );
    }
}
