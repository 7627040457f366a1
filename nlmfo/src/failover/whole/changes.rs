//! Which part of a record cannot come back, because the configuration of the server has changed. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::filesystems::Filesystems;
use crate::failover::record::Record;
use crate::foreign::Shown;
use crate::kernel::nfsd::Versions;
use crate::observe::describe::FileLine;
use crate::observe::states::describe::ClientLine4;

/// The configuration of the started server.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
    pub addresses: BTreeSet<IpAddr>,
    pub exports: BTreeSet<PathBuf>,
    pub filesystems: Filesystems,
    pub versions: Versions,
}

/// A part of the configuration that has been missing since the record, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub what: String,
    /// Locks, shares and NFSv4 states that cannot be reclaimed.
    pub costs: usize,
}

/// A record, divided into what can come back and what cannot.
#[derive(Clone, Debug)]
pub struct Split {
    pub wanted: Record,
    /// Only the locks, shares and NFSv4 states that cannot come back.
    pub lost: Record,
    /// Why they cannot.
    pub changes: Vec<Change>,
    /// The addresses that keep some of them from coming back.
    absent: BTreeSet<IpAddr>,
}

/// Divides a record into what can come back and what cannot.
pub fn split(record: &Record, now: &Configuration) -> Split {
    let mut causes = Causes::default();
    let mut wanted = record.clone();
    let lost = Record {
        locks: causes.divide(&mut wanted.locks, |lock| {
            now.lacks_for_v3(lock.host.vip, &lock.file)
        }),
        shares: causes.divide(&mut wanted.shares, |share| {
            now.lacks_for_v3(share.host.vip, &share.file)
        }),
        nfs4: causes.divide(&mut wanted.nfs4, |state| {
            now.lacks_for_v4(&state.client, state.file.as_ref())
        }),
        ..Record::of_clients(Vec::new(), Vec::new())
    };
    let absent = vips_of(&lost).filter(|vip| !now.addresses.contains(vip));
    let absent = absent.collect();
    (wanted.clients).retain(|client| now.addresses.contains(&client.host.vip));
    wanted.vips.retain(|vip| now.addresses.contains(vip));
    let changes = causes.0.into_iter();
    Split {
        wanted,
        lost,
        changes: changes
            .map(|(what, costs)| Change { what, costs })
            .collect(),
        absent,
    }
}

/// The addresses through which something is held.
fn vips_of(record: &Record) -> impl Iterator<Item = IpAddr> {
    let locks = record.locks.iter().map(|lock| lock.host.vip);
    let shares = record.shares.iter().map(|share| share.host.vip);
    let nfs4 = record.nfs4.iter().flat_map(|state| &state.client.vips);
    locks.chain(shares).chain(nfs4.copied())
}

/// The addresses of which something can come back once they are up: a slow network may bring them up
/// after the server has started.
pub fn awaited(record: &Record, now: &Configuration) -> BTreeSet<IpAddr> {
    let mut complete = now.clone();
    complete.addresses.extend(vips_of(record));
    let possible = split(record, &complete).wanted;
    split(&possible, now).absent
}

/// How many locks and opens each cause concerns.
#[derive(Default)]
struct Causes(BTreeMap<String, usize>);

impl Causes {
    /// Removes the lines for which something is missing, and counts each cause.
    fn divide<T>(&mut self, all: &mut Vec<T>, lacks: impl Fn(&T) -> Option<String>) -> Vec<T> {
        let (lost, kept) = std::mem::take(all).into_iter().partition(|one| {
            let why = lacks(one);
            let is_lost = why.is_some();
            if let Some(why) = why {
                *self.0.entry(why).or_default() += 1;
            }
            is_lost
        });
        *all = kept;
        lost
    }
}

impl Configuration {
    fn lacks_for_v3(&self, vip: IpAddr, file: &FileLine) -> Option<String> {
        match self.versions.has_v3() {
            _ if !self.addresses.contains(&vip) => Some(gone(vip)),
            false => Some("NFSv3 is not served".to_owned()),
            true => self.lacks_export(file),
        }
    }

    fn lacks_for_v4(&self, client: &ClientLine4, file: Option<&FileLine>) -> Option<String> {
        let mut vips = client.vips.iter();
        match client.vips.first() {
            Some(&vip) if !client.vip_unknown && !vips.any(|vip| self.addresses.contains(vip)) => {
                Some(gone(vip))
            }
            _ if !self.versions.has_v4(client.minor) => {
                Some(format!("NFSv4.{} is not served", client.minor))
            }
            _ => self.lacks_export(file?),
        }
    }

    /// A file whose path is not known may be exported. So may one on the filesystem of another export,
    /// which may contain the file under another path.
    fn lacks_export(&self, file: &FileLine) -> Option<String> {
        let text = file.path.as_ref()?;
        let path = Path::new(text);
        let contains = |export: &PathBuf| path.starts_with(export.shown().to_string());
        if self.exports.iter().any(contains) || !self.filesystems.excludes(text) {
            return None;
        }
        let folder = path.parent().unwrap_or(path);
        Some(format!("{} is not exported", folder.display()))
    }
}

fn gone(vip: IpAddr) -> String {
    format!("{vip} is not an address of this node")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::record::sample::{lock, record, state};
    use crate::kernel::mounts::Mount;
    use crate::observe::states::Kind;

    #[test]
    fn what_cannot_come_back_is_counted_with_its_cause() {
        let mut record = record(&["10.77.0.1", "10.77.0.2"]);
        record.locks = vec![lock("10.77.0.1", 0, 9), lock("10.77.0.2", 0, 9)];
        record.nfs4 = vec![state(Kind::Open)];
        let mut now = Configuration {
            addresses: record.vips.iter().copied().collect(),
            exports: [PathBuf::from("/export")].into(),
            versions: "+3 +4 +4.1".into(),
            ..Configuration::default()
        };
        let Split {
            wanted,
            lost,
            changes,
            ..
        } = split(&record, &now);
        assert!(changes.is_empty() && wanted.locks == record.locks && wanted.nfs4 == record.nfs4);
        assert!(lost.locks.is_empty() && lost.nfs4.is_empty());

        now.addresses.remove(&record.vips[1]);
        now.versions = "+3 +4".into();
        let Split {
            wanted,
            lost,
            changes,
            ..
        } = split(&record, &now);
        assert_eq!(
            (wanted.locks.len(), wanted.nfs4.len(), wanted.vips.len()),
            (1, 0, 1)
        );
        assert_eq!((lost.locks.len(), lost.nfs4.len()), (1, 1));
        let texts: Vec<_> = (changes.iter())
            .map(|change| (change.what.as_str(), change.costs))
            .collect();
        let expected = [
            ("10.77.0.2 is not an address of this node", 1),
            ("NFSv4.1 is not served", 1),
        ];
        assert_eq!(texts, expected);

        now.exports = ["/exp".into(), "/export2".into()].into();
        let Split { changes, .. } = split(&record, &now);
        assert!(changes.iter().all(|one| !one.what.contains("exported")));
        let root = Mount {
            device: (8, 1),
            root: "/".into(),
            mount_point: "/".into(),
            filesystem: "ext4".into(),
        };
        now.filesystems = Filesystems::of(&[root], &[], ["/export/file"].into_iter());
        let Split { changes, .. } = split(&record, &now);
        assert_eq!(changes[0].what, "/export is not exported");
    }

    #[test]
    fn only_an_address_that_alone_keeps_something_away_is_awaited() {
        let mut record = record(&["10.77.0.1", "10.77.0.2"]);
        record.locks = vec![lock("10.77.0.1", 0, 9), lock("10.77.0.2", 0, 9)];
        record.nfs4 = vec![state(Kind::Open)];
        let [first, second] = record.vips[..] else {
            panic!("{record:?}");
        };
        let of_nfs4 = record.nfs4[0].client.vips.clone();
        let mut now = Configuration {
            addresses: record.vips.iter().chain(&of_nfs4).copied().collect(),
            exports: [PathBuf::from("/export")].into(),
            versions: "+3 +4 +4.1".into(),
            ..Configuration::default()
        };
        assert!(awaited(&record, &now).is_empty());
        now.addresses.remove(&second);
        assert!(awaited(&record, &now).contains(&second));
        now.addresses.clear();
        let all: BTreeSet<IpAddr> = [first, second].into_iter().chain(of_nfs4.clone()).collect();
        assert_eq!(awaited(&record, &now), all);
        // Its locks are lost even if it comes up.
        now.versions = "+4 +4.1".into();
        assert_eq!(awaited(&record, &now), of_nfs4.into_iter().collect());
    }
}
