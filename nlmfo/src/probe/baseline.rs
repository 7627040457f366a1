//! Compares with an earlier report: only regressions count.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::files::{self, LIMIT};
use nlmfo_common::probe::{Checked, Report, SCHEMA, Verdict};

/// An earlier probe's verdicts.
#[derive(Debug)]
pub struct Baseline {
    /// With the known bug that explains a failure.
    verdicts: BTreeMap<String, (Verdict, Option<String>)>,
}

/// A check whose verdict has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Name of the check.
    pub name: String,
    /// None: the check is new.
    pub before: Option<Verdict>,
    /// Its verdict in the later report.
    pub now: Verdict,
    /// Both are failures, of which one is a known bug that the other is not.
    pub is_other_failure: bool,
}

impl Change {
    /// Whether it is a regression: a new failure, or a missing pass.
    pub fn is_regression(&self) -> bool {
        match self.now {
            Verdict::Fail => true,
            Verdict::Unsupported => self.before == Some(Verdict::Pass),
            Verdict::Pass => false,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = |verdict| match verdict {
            Verdict::Pass => "pass",
            Verdict::Fail => "fail",
            Verdict::Unsupported => "unsupported",
        };
        let before = match self.is_other_failure {
            true => "fail for another reason",
            false => self.before.map_or("not run", word),
        };
        write!(f, "{}: {}, was {before}", self.name, word(self.now))
    }
}

impl Baseline {
    /// Reads a report that `nlmfo probe --format json` wrote.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text =
            files::read(path, LIMIT).with_context(|| format!("the baseline {}", path.display()))?;
        let report: Report = serde_json::from_slice(&text).with_context(|| {
            format!(
                "the baseline {} is not a report of `nlmfo probe --format json`",
                path.display()
            )
        })?;
        ensure!(
            report.schema == SCHEMA,
            "the baseline {} has the schema {}, but this nlmfo reads {SCHEMA}",
            path.display(),
            report.schema
        );
        Ok(Self::of(&report))
    }

    /// What a report says, for comparison with a later one.
    pub fn of(report: &Report) -> Self {
        let verdicts = (report.checks.iter())
            .map(|check| (check.name.clone(), (check.verdict, bug(check))))
            .collect();
        Baseline { verdicts }
    }

    /// The changes, in the report's order.
    pub fn changes(&self, report: &Report) -> Vec<Change> {
        (report.checks.iter())
            .map(|check| {
                let before = self.verdicts.get(&check.name);
                let both_failed = |(before, _): &&(Verdict, Option<String>)| {
                    *before == Verdict::Fail && check.is_failed()
                };
                Change {
                    name: check.name.clone(),
                    before: before.map(|(verdict, _)| *verdict),
                    now: check.verdict,
                    is_other_failure: before
                        .filter(both_failed)
                        .is_some_and(|(_, known)| *known != bug(check)),
                }
            })
            .filter(|change| change.before != Some(change.now) || change.is_other_failure)
            .collect()
    }
}

fn bug(check: &Checked) -> Option<String> {
    check.known.as_ref().map(|known| known.id.clone())
}

#[cfg(test)]
mod tests {
    use nlmfo_common::probe::Known;
    use std::fs;

    use super::*;
    use Verdict::{Fail, Pass, Unsupported};

    fn report(verdicts: &[(&str, Verdict)]) -> Report {
        let checks = verdicts.iter().map(|(name, verdict)| Checked {
            name: (*name).into(),
            proves: String::new(),
            verdict: *verdict,
            detail: None,
            known: None,
            seconds: 0.0,
        });
        Report {
            schema: SCHEMA.into(),
            kernel: "k".into(),
            source: "6.1.0".into(),
            nlmfo: "0".into(),
            seconds: 0.0,
            checks: checks.collect(),
        }
    }

    #[test]
    fn what_was_wrong_before_is_no_regression() {
        let baseline = Baseline::of(&report(&[
            ("a", Fail),
            ("b", Pass),
            ("c", Pass),
            ("d", Fail),
            ("e", Unsupported),
        ]));
        let now = report(&[
            ("a", Fail),
            ("b", Fail),
            ("c", Unsupported),
            ("d", Pass),
            ("e", Unsupported),
            ("f", Fail),
            ("g", Pass),
        ]);
        let regressions: Vec<String> = (baseline.changes(&now).iter())
            .filter(|change| change.is_regression())
            .map(ToString::to_string)
            .collect();
        assert_eq!(
            regressions,
            [
                "b: fail, was pass",
                "c: unsupported, was pass",
                "f: fail, was not run"
            ]
        );
    }

    #[test]
    fn a_known_bug_does_not_hide_another_failure() {
        let mut before = report(&[("a", Fail), ("b", Fail)]);
        before.checks[0].known = Some(Known {
            id: "known".into(),
            title: String::new(),
            evidence: String::new(),
        });
        let now = report(&[("a", Fail), ("b", Fail)]);
        let changes = Baseline::of(&before).changes(&now);
        assert_eq!(changes.len(), 1);
        assert!(changes[0].is_regression());
        assert_eq!(
            changes[0].to_string(),
            "a: fail, was fail for another reason"
        );
    }

    #[test]
    fn another_file_is_no_baseline() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(&file, "{}").unwrap();
        let error = format!("{:#}", Baseline::read(file.path()).unwrap_err());
        assert!(error.contains("nlmfo probe --format json"), "{error}");
    }
}
