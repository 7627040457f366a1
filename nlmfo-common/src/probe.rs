//! What `nlmfo probe --format json` says of one kernel: one document, schema
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
    Pass,
    Fail,
    /// This kernel or node cannot show it.
    Unsupported,
}

/// A known bug as reports name it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    pub id: String,
    pub title: String,
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
    pub name: String,
    /// What a pass proves, in a sentence.
    pub proves: String,
    pub verdict: Verdict,
    /// What was seen instead, or why it cannot be shown; absent from one that passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
    /// The known bug of this kernel that explains a failure.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub known: Option<Known>,
    pub seconds: f64,
}

impl Checked {
    pub fn is_failed(&self) -> bool {
        self.verdict == Verdict::Fail
    }

    /// Whether it failed, and no known bug explains it.
    pub fn failed_unexpectedly(&self) -> bool {
        self.is_failed() && self.known.is_none()
    }

    pub fn reason(&self) -> &str {
        self.detail.as_deref().unwrap_or("no reason was given")
    }
}

/// The probe of one kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub schema: String,
    /// As `uname -r` prints it.
    pub kernel: String,
    /// The version of the sources that it was built from, which decides its known bugs. A
    /// distribution's release may differ.
    pub source: String,
    /// nlmfo's own version.
    pub nlmfo: String,
    /// The whole probe.
    pub seconds: f64,
    /// In the order in which they were made.
    pub checks: Vec<Checked>,
}

impl Report {
    pub fn failed(&self) -> impl Iterator<Item = &Checked> {
        self.checks.iter().filter(|check| check.is_failed())
    }
}
