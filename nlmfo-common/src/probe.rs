//! The report of `nlmfo probe --format json` on one kernel: one document, schema
//! "nlmfo.probe/1". The tool writes it; its baseline and `cargo xtask probe` read it.

use std::fmt;
use std::string::String;
use std::vec::Vec;

use serde::{Deserialize, Serialize};

/// The schema of [`Report`].
pub const SCHEMA: &str = "nlmfo.probe/1";

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The kernel does what the check expects.
    Pass,
    /// The kernel does something else.
    Fail,
    /// The check cannot be made on this kernel or node.
    Unsupported,
}

/// A known kernel bug.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The CVE, or nlmfo's own name for a bug without one.
    pub id: String,
    /// What the kernel does wrong, in one sentence.
    pub title: String,
    /// Where this was read or seen, and the versions that have or fix it.
    pub evidence: String,
}

impl fmt::Display for Known {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.id, self.title, self.evidence)
    }
}

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// The check's name, unique in a report.
    pub name: String,
    /// What a pass proves, in a sentence.
    pub proves: String,
    /// The result, whether a known bug explains it or not.
    pub verdict: Verdict,
    /// What was seen instead, or why the check cannot be made; absent if it passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The known bug of this kernel that explains a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<Known>,
    /// How long the check took.
    pub seconds: f64,
}

impl Checked {
    /// Whether it failed, even if a known bug explains the failure.
    pub fn is_failed(&self) -> bool {
        self.verdict == Verdict::Fail
    }

    /// Whether it failed, and no known bug explains it.
    pub fn failed_unexpectedly(&self) -> bool {
        self.is_failed() && self.known.is_none()
    }

    /// `detail`, or a sentence that says that there is none.
    pub fn reason(&self) -> &str {
        self.detail.as_deref().unwrap_or("no reason was given")
    }
}

/// The probe of one kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// As `uname -r` prints it.
    pub kernel: String,
    /// Version of the sources that the kernel was built from, which decides its known bugs. It
    /// may differ from `kernel`.
    pub source: String,
    /// nlmfo's own version.
    pub nlmfo: String,
    /// How long the whole probe took.
    pub seconds: f64,
    /// In the order in which they were made.
    pub checks: Vec<Checked>,
}

impl Report {
    /// The failed checks, also those that a known bug explains.
    pub fn failed(&self) -> impl Iterator<Item = &Checked> {
        self.checks.iter().filter(|check| check.is_failed())
    }
}
