//! The reports of the last failovers, as `failover` stores them in `/run/nlmfo`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::Value;

use crate::files;

/// A report of many locks is large; a larger one is not read.
const LIMIT: u64 = 64 << 20;

const SCHEMA: &str = "nlmfo.last/1";

/// One report of one VIP.
#[derive(Clone, Debug, PartialEq)]
pub struct Last {
    pub vip: IpAddr,
    /// `release`, `takeover`, `failover` or `move`.
    pub operation: String,
    /// Seconds since 1970; when it began.
    pub at: u64,
    /// None while it runs.
    pub exit_status: Option<u8>,
    pub seconds: Option<f64>,
    /// Locks in the release record that were not reclaimed; none without a takeover.
    pub missing: Option<u64>,
    pub error: Option<String>,
}

/// The reports of a directory; one that has not changed is not read again.
#[derive(Debug)]
pub struct Lasts {
    folder: PathBuf,
    read: BTreeMap<PathBuf, (SystemTime, Option<Last>)>,
}

impl Lasts {
    pub fn new(folder: &Path) -> Self {
        Lasts {
            folder: folder.to_owned(),
            read: BTreeMap::new(),
        }
    }

    /// The reports as they are now. What cannot be read is left out.
    pub fn look(&mut self) -> Vec<Last> {
        let mut read = BTreeMap::new();
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let Some(vip) = vip_of(&path) else { continue };
            let Ok(modified) = fs::metadata(&path).and_then(|meta| meta.modified()) else {
                continue;
            };
            let known = self.read.remove(&path).filter(|(at, _)| *at == modified);
            let last = match known {
                Some((_, last)) => last,
                None => (files::read(&path, LIMIT).ok()).and_then(|json| parse(vip, &json)),
            };
            read.insert(path, (modified, last));
        }
        self.read = read;
        let lasts = self.read.values().filter_map(|(_, last)| last.clone());
        lasts.collect()
    }
}

/// The VIP of `last-OPERATION-VIP.json`.
fn vip_of(path: &Path) -> Option<IpAddr> {
    let name = path.file_name()?.to_str()?;
    let name = name.strip_prefix("last-")?.strip_suffix(".json")?;
    name.split_once('-')?.1.parse().ok()
}

fn parse(vip: IpAddr, json: &[u8]) -> Option<Last> {
    let json: Value = serde_json::from_slice(json).ok()?;
    if json["schema"] != SCHEMA {
        return None;
    }
    let took = |report: &Value| report["took_ms"].as_f64();
    let (release, takeover, pair) = (&json["release"], &json["takeover"], &json["move"]);
    let ms = match took(pair) {
        Some(ms) => Some(ms),
        None => match (took(release), took(takeover)) {
            (None, None) => None,
            (one, other) => Some(one.unwrap_or_default() + other.unwrap_or_default()),
        },
    };
    let takeover = match takeover {
        Value::Null => &pair["takeover"],
        takeover => takeover,
    };
    let of_vip = takeover["vips"].as_array().into_iter().flatten();
    let of_vip = of_vip
        .filter(|one| one["vip"].as_str().and_then(|text| text.parse().ok()) == Some(vip))
        .filter_map(|one| one["missing"].as_array());
    Some(Last {
        vip,
        operation: json["operation"].as_str()?.to_owned(),
        at: json["at"].as_u64()?,
        exit_status: json["exit_status"]
            .as_u64()
            .and_then(|exit| exit.try_into().ok()),
        seconds: ms.map(|ms| ms / 1000.0),
        missing: of_vip.map(|missing| missing.len() as u64).next(),
        error: json["error"].as_str().map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAKEOVER: &str = r#"{"schema": "nlmfo.last/1", "operation": "takeover",
        "vips": ["10.77.0.1"], "at": 1764000000, "exit_status": 5, "error": null,
        "release": null, "takeover": {"took_ms": 1500.0, "vips": [
            {"vip": "10.77.0.2", "missing": [1]}, {"vip": "10.77.0.1", "missing": [1, 2]}]},
        "move": null}"#;

    #[test]
    fn a_report_is_read_when_it_changes() {
        let folder = tempfile::tempdir().unwrap();
        let mut lasts = Lasts::new(folder.path());
        assert_eq!(lasts.look(), []);
        let path = folder.path().join("last-takeover-10.77.0.1.json");
        fs::write(&path, TAKEOVER).unwrap();
        fs::write(folder.path().join("last-release.json"), "{}").unwrap();
        fs::write(folder.path().join("last-release-fd77::1.json"), "nonsense").unwrap();
        let expected = Last {
            vip: "10.77.0.1".parse().unwrap(),
            operation: "takeover".to_owned(),
            at: 1_764_000_000,
            exit_status: Some(5),
            seconds: Some(1.5),
            missing: Some(2),
            error: None,
        };
        for _ in 0..2 {
            assert_eq!(lasts.look(), std::slice::from_ref(&expected));
        }
        fs::remove_file(path).unwrap();
        assert_eq!(lasts.look(), []);
    }

    #[test]
    fn a_failover_that_runs_has_no_status() {
        let running = TAKEOVER.replace("\"exit_status\": 5", "\"exit_status\": null");
        let vip = "10.77.0.1".parse().unwrap();
        assert_eq!(parse(vip, running.as_bytes()).unwrap().exit_status, None);
        let other = TAKEOVER.replace("nlmfo.last/1", "nlmfo.last/2");
        assert_eq!(parse(vip, other.as_bytes()), None);
    }
}
