//! How a scenario ended: one JSON line from the virtual machine to the host.

use serde::{Deserialize, Serialize};

/// What a scenario found out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    /// What was expected and what was seen instead.
    Fail(String),
    /// Why this kernel or userland cannot show it.
    Unsupported(String),
}

/// The line that `lab-guest scenario` prints when it ends.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub scenario: String,
    /// `uname -r` of the kernel it ran on.
    pub kernel: String,
    pub verdict: Verdict,
    pub seconds: f64,
}

impl Report {
    /// The report as one line, without the newline.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("a report has no map with keys that are not text")
    }

    /// The report among everything that the virtual machine printed; `None`
    /// if the guest ended without a word.
    pub fn find_in(output: &str) -> Option<Report> {
        output
            .lines()
            .rev()
            .find_map(|line| serde_json::from_str(line.trim()).ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_found_between_other_lines() {
        let report = Report {
            scenario: "topology".into(),
            kernel: "6.1.0-1-cloud-amd64".into(),
            verdict: Verdict::Fail("expected 6 locks,\nsaw 5".into()),
            seconds: 4.5,
        };
        let output = format!("noise\n{}\r\n{{\"other\": 1}}\n", report.to_line());
        assert_eq!(Report::find_in(&output), Some(report));
    }

    #[test]
    fn no_report_is_none() {
        assert_eq!(Report::find_in("Kernel panic\n"), None);
    }
}
