//! The JSON reports of nlmfo, as far as scenarios read them.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, Result, anyhow, ensure};
use nlmfo::observe::host::{NlmVersion, Transport};
use serde::Deserialize;
use serde_json::Value;

use super::known::Known;
use super::locker::Mode;

/// A lock, waiter or share in the tool's report.
#[derive(Clone, Debug, Deserialize)]
pub struct Entry {
    pub vip: IpAddr,
    pub client: IpAddr,
    pub transport: String,
    pub version: u32,
    pub file: File,
    #[serde(default)]
    pub svid: u32,
    #[serde(default)]
    pub mode: Option<Mode>,
    #[serde(default)]
    pub range: Option<Ends>,
    #[serde(default)]
    pub access: Option<u32>,
    #[serde(default)]
    pub deny: Option<u32>,
}

/// A locked file.
#[derive(Clone, Debug, Deserialize)]
pub struct File {
    pub ino: u64,
    /// Absolute, on the server; `None` if nlmfo cannot find it.
    pub path: Option<String>,
}

/// Both ends included; `end` is null for the end of the file.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Ends {
    pub start: u64,
    pub end: Option<u64>,
}

impl Entry {
    /// The lock, or the lock that is waited for.
    pub fn known(&self) -> Result<Known> {
        let range = self.range.context("an entry without a range")?;
        Ok(Known {
            vip: self.vip,
            client: self.client,
            transport: match self.transport.as_str() {
                "tcp" => Transport::Tcp,
                "udp" => Transport::Udp,
                other => return Err(anyhow!("transport {other:?}")),
            },
            version: NlmVersion::try_from(self.version)
                .map_err(|number| anyhow!("NLM version {number}"))?,
            inode: self.file.ino,
            start: range.start,
            end: range.end,
            write: self.mode.context("an entry without a mode")? == Mode::Write,
        })
    }
}

/// The entries of `list` ("locks", "waiters", "shares") in a report.
pub fn entries(report: &Value, list: &str) -> Result<Vec<Entry>> {
    let value = report
        .get(list)
        .with_context(|| format!("the report has no {list}: {report}"))?;
    serde_json::from_value(value.clone()).with_context(|| format!("{list} in {report}"))
}

/// The entries of a list as a set of what is known.
pub fn known(report: &Value, list: &str) -> Result<BTreeSet<Known>> {
    entries(report, list)?.iter().map(Entry::known).collect()
}

/// Ensures that after a restart or a move of a server, all recorded locks and opens are back, at least
/// `expected` of them, and that the server was in each of `graces` ("lockd", "nfsd"), which ended
/// early.
pub fn ensure_kept(report: &Value, graces: &[&str], expected: u64) -> Result<()> {
    let start = &report["start"];
    let none = |kind: &str| start["missing"][kind].as_array().is_some_and(Vec::is_empty);
    ensure!(
        start["ended"] == "early"
            && start["has_record"] == true
            && graces.iter().all(|grace| start["grace"][grace] == true)
            && start["expected"].as_u64() >= Some(expected)
            && none("locks")
            && none("nfs4"),
        "{report}"
    );
    eprintln!(
        "all back {} ms after the start; clients were blocked for {} ms",
        start["back_after_ms"], report["stood_still_ms"]
    );
    Ok(())
}

/// How one VIP was released, from `nlmfo failover --phase release --json`.
#[derive(Clone, Debug, Deserialize)]
pub struct Release {
    pub vip: IpAddr,
    pub verdict: String,
    pub warnings: Vec<String>,
    pub steps: Vec<Step>,
    pub released: Vec<Entry>,
    pub waiters_released: Vec<Entry>,
    pub shares_released: Vec<Entry>,
    pub remaining: Vec<Entry>,
    pub counters: Counters,
}

/// What lockd did for a VIP during its release, as far as scenarios read it.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Counters {
    pub granted_later: u64,
}

/// A method that was tried, by its name in JSON: `unlock_ip`, `free_all`, …
#[derive(Clone, Debug, Deserialize)]
pub struct Step {
    pub method: String,
    pub error: Option<String>,
}

/// What happened to a VIP that the release must not change.
#[derive(Clone, Debug, Deserialize)]
pub struct Other {
    pub vip: IpAddr,
    pub fate: String,
}

/// The report of a release.
#[derive(Clone, Debug, Deserialize)]
pub struct Releases {
    pub confirmed: bool,
    pub vips: Vec<Release>,
    pub other_vips: Vec<Other>,
}

impl Releases {
    pub fn of(report: Value) -> Result<Releases> {
        let text = report.to_string();
        serde_json::from_value(report).with_context(|| format!("the report of a release: {text}"))
    }

    /// The report on `vip`.
    pub fn vip(&self, vip: IpAddr) -> Result<&Release> {
        self.vips
            .iter()
            .find(|release| release.vip == vip)
            .with_context(|| format!("the report does not name {vip}: {self:#?}"))
    }
}

impl Release {
    /// The locks that it names as released.
    pub fn known(&self) -> Result<BTreeSet<Known>> {
        self.released.iter().map(Entry::known).collect()
    }

    /// The methods that did not fail, in order.
    pub fn methods(&self) -> Vec<&str> {
        self.steps
            .iter()
            .filter(|step| step.error.is_none())
            .map(|step| step.method.as_str())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_line_is_read_as_what_is_known() {
        let report = serde_json::json!({"locks": [{
            "vip": "10.77.0.1", "client": "10.77.1.1", "client_name": "c1", "version": 4,
            "transport": "tcp", "netns": 1, "svid": 3, "mode": "write",
            "range": {"start": 5, "end": null},
            "file": {"dev": "0:28", "ino": 17, "fh": "00", "path": null},
        }]});
        let locks = known(&report, "locks").unwrap();
        let lock = locks.first().unwrap();
        assert_eq!((lock.inode, lock.start, lock.end), (17, 5, None));
        assert!(lock.write && lock.transport == Transport::Tcp);
    }

    #[test]
    fn a_report_without_the_list_is_an_error() {
        assert!(known(&serde_json::json!({}), "locks").is_err());
    }
}
