//! The verdict of a scenario: one JSON line from the virtual machine to the host.

use serde::{Deserialize, Serialize};

/// The verdict of a scenario.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Pass,
    /// What was expected and what was seen instead.
    Fail(String),
    /// Why this kernel or userland cannot show it.
    Unsupported(String),
}

/// The line that `lab-guest scenario` prints when it ends, and `lab-guest scenarios` for
/// each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub scenario: String,
    /// `uname -r` of the kernel it ran on.
    pub kernel: String,
    pub verdict: Verdict,
    pub seconds: f64,
    /// Processor seconds of the machine meanwhile.
    pub busy: f64,
    /// Seconds of it that the scenario waited for nlmfo.
    pub tool: f64,
    /// What making the machine as new took afterwards, in seconds.
    pub sweep: f64,
}

impl Report {
    /// The report as one line, without the newline.
    pub fn to_line(&self) -> String {
        serde_json::to_string(self).expect("a report has no map with keys that are not text")
    }

    /// Parses a line as a report, if it is one.
    pub fn of_line(line: &str) -> Option<Report> {
        serde_json::from_str(line.trim()).ok()
    }
}

/// The line on standard error after which a scenario's own output follows.
pub fn heading(scenario: &str) -> String {
    format!("=== scenario {scenario}")
}

/// What a scenario wrote to a standard error that several share.
pub fn said_by<'a>(scenario: &str, stderr: &'a str) -> &'a str {
    let heading = heading(scenario) + "\n";
    let Some((_, said)) = stderr.split_once(&heading) else {
        return "";
    };
    said.split_once("\n=== scenario ")
        .map_or(said, |(said, _)| said)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_told_from_other_lines() {
        let report = Report {
            scenario: "topology".into(),
            kernel: "6.1.0-1-cloud-amd64".into(),
            verdict: Verdict::Fail("expected 6 locks,\nsaw 5".into()),
            seconds: 4.5,
            busy: 3.25,
            tool: 2.5,
            sweep: 1.0,
        };
        let line = format!("{}\r\n", report.to_line());
        assert_eq!(Report::of_line(&line), Some(report));
        for other in ["Kernel panic\n", "{\"other\": 1}\n", ""] {
            assert_eq!(Report::of_line(other), None, "{other:?}");
        }
    }

    #[test]
    fn what_a_scenario_said_ends_where_the_next_begins() {
        let stderr = format!("a\n{}\nb\nc\n{}\nd\n", heading("one"), heading("two"));
        assert_eq!(said_by("one", &stderr), "b\nc");
        assert_eq!(said_by("two", &stderr), "d\n");
        assert_eq!(said_by("three", &stderr), "");
    }
}
