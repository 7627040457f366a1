//! The report of the last failover of each VIP, stored on this node before it is printed,
//! so that it survives a lost connection or pipe.

use std::net::IpAddr;
use std::path::PathBuf;

use serde::Serialize;

use super::pair::report::PairReport;
use super::report::ReleaseReport;
use super::takeover_report::TakeoverReport;
use crate::causes::chain;
use crate::files::run::{self, RunError};
use crate::files::{self, FileError, PRIVATE};
use crate::output;

/// The stored report: one JSON object, `schema` "nlmfo.last/1".
#[derive(Debug, Serialize)]
pub struct Kept<'a> {
    pub schema: &'static str,
    /// `release`, `takeover`, `failover` (both on this node) or `move` (to another one).
    pub operation: &'static str,
    pub vips: &'a [IpAddr],
    /// Seconds since 1970.
    pub at: u64,
    /// The exit status; null while the failover runs, and if it was killed.
    pub exit_status: Option<u8>,
    /// Why it failed.
    pub error: Option<&'a str>,
    pub release: Option<&'a ReleaseReport>,
    pub takeover: Option<&'a TakeoverReport>,
    #[serde(rename = "move")]
    pub pair: Option<&'a PairReport>,
}

impl Kept<'_> {
    pub const SCHEMA: &'static str = "nlmfo.last/1";

    /// Writes it for each VIP, as `last-WHAT-VIP.json`, and returns the first path. A failed
    /// write is reported but is no error of the failover.
    pub fn keep(&self) -> Option<PathBuf> {
        match self.write(run::file) {
            Ok(first) => first,
            Err(error) => {
                not_kept(&error);
                None
            }
        }
    }

    fn write(
        &self,
        place: impl Fn(&str) -> Result<PathBuf, RunError>,
    ) -> Result<Option<PathBuf>, RunError> {
        let mut json = Vec::new();
        // Writing to memory cannot fail.
        let _ = output::write_json(&mut json, self);
        let mut first = None;
        for vip in self.vips {
            let path = place(&format!("last-{}-{vip}.json", self.operation))?;
            let written = files::write_whole(&path, &json, PRIVATE);
            written.map_err(FileError::io("writing", &path))?;
            first.get_or_insert(path);
        }
        Ok(first)
    }
}

/// Writes the report of a command that is not about single VIPs as `last-WHAT.json`. See
/// [`Kept::keep`].
pub fn keep_as(what: &str, report: &impl Serialize) -> Option<PathBuf> {
    let mut json = Vec::new();
    let _ = output::write_json(&mut json, report);
    let written = run::file(&format!("last-{what}.json")).and_then(|path| {
        files::write_whole(&path, &json, PRIVATE).map_err(FileError::io("writing", &path))?;
        Ok(path)
    });
    written.inspect_err(not_kept).ok()
}

fn not_kept(error: &RunError) {
    output::note(format_args!(
        "the report could not be stored: {}",
        chain(error)
    ));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_report_replaces_the_one_before_for_each_vip() {
        let folder = tempfile::tempdir().unwrap();
        let vips = ["10.77.0.1".parse().unwrap(), "fd77::1".parse().unwrap()];
        for exit in [None, Some(3)] {
            let kept = Kept {
                schema: Kept::SCHEMA,
                operation: "release",
                vips: &vips,
                at: 1,
                exit_status: exit,
                error: None,
                release: None,
                takeover: None,
                pair: None,
            };
            let first = kept.write(|name| Ok(folder.path().join(name))).unwrap();
            let path = folder.path().join("last-release-10.77.0.1.json");
            assert_eq!(first, Some(path));
        }
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
        for vip in vips {
            let path = folder.path().join(format!("last-release-{vip}.json"));
            let json: serde_json::Value =
                serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            assert_eq!(json["exit_status"], 3);
        }
    }
}
