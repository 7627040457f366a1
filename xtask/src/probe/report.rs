//! What `nlmfo probe --format json` says of one kernel: one document, schema
//! `nlmfo.probe/1`.

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

const SCHEMA: &str = "nlmfo.probe/1";

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Report {
    pub schema: String,
    /// As `uname -r` prints it.
    pub kernel: String,
    /// The version of the sources that it was built from: known bugs go by it.
    pub source: String,
    /// The version of nlmfo.
    pub nlmfo: String,
    /// The whole probe.
    pub seconds: f64,
    /// In the order in which they were made.
    pub checks: Vec<Check>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Check {
    pub name: String,
    /// What it shows if it passes, in a sentence.
    pub proves: String,
    pub verdict: Verdict,
    /// What was seen, or why it is not supported; absent from one that passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The bug of this kernel that the failure is known to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<Known>,
    pub seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Pass,
    Fail,
    /// The kernel or the machine has no such thing.
    Unsupported,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Known {
    pub id: String,
    pub title: String,
    pub evidence: String,
}

impl Report {
    pub fn parse(json: &[u8]) -> Result<Self> {
        let report: Report = serde_json::from_slice(json)
            .with_context(|| format!("read the output of nlmfo probe as {SCHEMA}"))?;
        ensure!(
            report.schema == SCHEMA,
            "nlmfo probe printed {}, not {SCHEMA}",
            report.schema
        );
        ensure!(!report.checks.is_empty(), "nlmfo probe made no check");
        Ok(report)
    }
}

impl Check {
    /// Whether it failed by no bug that is known.
    pub fn failed_unexpectedly(&self) -> bool {
        self.verdict == Verdict::Fail && self.known.is_none()
    }

    pub fn reason(&self) -> &str {
        self.detail.as_deref().unwrap_or("no reason was given")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_schema_and_no_checks_are_refused() {
        let with = |schema: &str, checks: &str| {
            Report::parse(
                format!(
                    r#"{{"schema":"{schema}","kernel":"6.1.0-50","source":"6.1.176","nlmfo":"0.1.0","seconds":1,"checks":{checks}}}"#
                )
                .as_bytes(),
            )
        };
        let check = r#"[{"name":"a","proves":"b","verdict":"pass","seconds":0.1}]"#;
        assert!(with(SCHEMA, check).is_ok());
        assert!(with("nlmfo.probe/2", check).is_err());
        assert!(with(SCHEMA, "[]").is_err());
        assert!(with(SCHEMA, &check.replace("pass", "perhaps")).is_err());
    }
}
