//! What of a record cannot come back, because the server is configured otherwise now. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use serde::Serialize;

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
    pub versions: Versions,
}

/// Something that is missing since the record, and what it costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    pub what: String,
    /// Locks, shares and NFSv4 states that cannot be reclaimed.
    pub costs: usize,
}

/// The part of the record that can come back, and why the rest cannot.
pub fn split(record: &Record, now: &Configuration) -> (Record, Vec<Change>) {
    let mut costs: BTreeMap<String, usize> = BTreeMap::new();
    let mut keep = |why: Option<String>| match why {
        None => true,
        Some(why) => {
            *costs.entry(why).or_default() += 1;
            false
        }
    };
    let mut part = record.clone();
    part.locks
        .retain(|lock| keep(now.lacks_for_v3(lock.host.vip, &lock.file)));
    part.shares
        .retain(|share| keep(now.lacks_for_v3(share.host.vip, &share.file)));
    (part.nfs4).retain(|state| keep(now.lacks_for_v4(&state.client, state.file.as_ref())));
    part.clients
        .retain(|client| now.addresses.contains(&client.host.vip));
    part.vips.retain(|vip| now.addresses.contains(vip));
    let changes = costs.into_iter();
    let changes = changes.map(|(what, costs)| Change { what, costs });
    (part, changes.collect())
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

    /// A file whose path is not known may be exported.
    fn lacks_export(&self, file: &FileLine) -> Option<String> {
        let path = Path::new(file.path.as_ref()?);
        let contains = |export: &PathBuf| path.starts_with(export.shown().to_string());
        if self.exports.iter().any(contains) {
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
        };
        let (part, changes) = split(&record, &now);
        assert!(changes.is_empty() && part.locks == record.locks && part.nfs4 == record.nfs4);

        now.addresses.remove(&record.vips[1]);
        now.versions = "+3 +4".into();
        let (part, changes) = split(&record, &now);
        assert_eq!(
            (part.locks.len(), part.nfs4.len(), part.vips.len()),
            (1, 0, 1)
        );
        let texts: Vec<_> = (changes.iter())
            .map(|change| (change.what.as_str(), change.costs))
            .collect();
        let expected = [
            ("10.77.0.2 is not an address of this node", 1),
            ("NFSv4.1 is not served", 1),
        ];
        assert_eq!(texts, expected);

        now.exports = ["/exp".into(), "/export2".into()].into();
        let (_, changes) = split(&record, &now);
        assert_eq!(changes[0].what, "/export is not exported");
    }
}
