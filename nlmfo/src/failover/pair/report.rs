//! The report of a failover between two nodes, as JSON and as text.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use super::Action;
use crate::failover::report::ReleaseReport;
use crate::failover::takeover_report::TakeoverReport;
use crate::foreign::on_one_line;

/// `nlmfo failover --to HOST --json`: one object, `schema` "nlmfo.move/1".
#[derive(Debug, Serialize)]
pub struct PairReport {
    pub schema: &'static str,
    pub from: String,
    pub to: String,
    pub vips: Vec<IpAddr>,
    /// In order; the last ones may repair a failure.
    pub steps: Vec<Step>,
    /// The release on this node.
    pub release: Option<ReleaseReport>,
    /// The takeover's report from the other node, `schema` "nlmfo.takeover/1".
    pub takeover: Option<Value>,
    /// The takeover on this node, if clients reclaimed here after a failure.
    pub reclaimed_here: Option<TakeoverReport>,
    /// The situation and what to do, after a failure.
    pub situation: Option<String>,
    pub took_ms: f64,
}

/// A step that was done or tried.
#[derive(Debug, Serialize)]
pub struct Step {
    pub action: Action,
    pub node: String,
    pub error: Option<String>,
    pub took_ms: f64,
}

impl PairReport {
    pub const SCHEMA: &str = "nlmfo.move/1";
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Action::Check => "services checked",
            Action::Arm => "grace started",
            Action::Release => "locks released",
            Action::HandOver => "handed over",
            Action::TakeOver => "taken over",
            Action::EndThere => "grace ended",
            Action::TakeBack => "reclaimed on this node",
        })
    }
}

impl fmt::Display for PairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let (mark, action, node) = match step.error {
                None => ("✓", step.action, &step.node),
                Some(_) => ("✗", step.action, &step.node),
            };
            write!(f, "{mark} {action} on {node}, {:.0} ms", step.took_ms)?;
            match &step.error {
                None => writeln!(f)?,
                Some(error) => writeln!(f, ": {error}")?,
            }
        }
        if let Some(release) = &self.release {
            write!(f, "{release}")?;
        }
        if let Some(takeover) = &self.takeover {
            write_takeover(f, takeover)?;
        }
        if let Some(reclaimed_here) = &self.reclaimed_here {
            write!(f, "{reclaimed_here}")?;
        }
        if let Some(situation) = &self.situation {
            writeln!(f, "{situation}")?;
        }
        Ok(())
    }
}

/// A summary of the other node's report, which may be of a newer version.
fn write_takeover(f: &mut fmt::Formatter<'_>, takeover: &Value) -> fmt::Result {
    for vip in items(&takeover["vips"]) {
        write_vip(f, vip)?;
    }
    for waiting in items(&takeover["still_waiting"]).map(words) {
        writeln!(f, "  ✗ {waiting}: it may have been granted during grace")?;
    }
    let failed = |device: &&Value| device["failed"] == true;
    for device in items(&takeover["uncovered"]).filter(failed) {
        let (name, reason) = (words(&device["device"]["name"]), words(&device["reason"]));
        writeln!(
            f,
            "  ✗ not covered by grace: packets that arrive on {name}: {reason}"
        )?;
    }
    Ok(())
}

fn write_vip(f: &mut fmt::Formatter<'_>, vip: &Value) -> fmt::Result {
    let missing = items(&vip["missing"]).count();
    let expected = vip["expected"].as_u64().unwrap_or_default() as usize;
    let violations = vip["window"]["lockd"]["violations"].as_u64();
    let mark = match (missing, violations) {
        (0, Some(0)) => "✓",
        _ => "✗",
    };
    let (address, back) = (words(&vip["vip"]), expected.saturating_sub(missing));
    writeln!(f, "{mark} {address}: {back} of {expected} locks reclaimed")?;
    for lock in items(&vip["missing"]) {
        let file = match lock["file"]["path"].as_str() {
            Some(path) => on_one_line(path).into_owned(),
            None => format!("inode {}", lock["file"]["ino"]),
        };
        let client = words(&lock["client"]);
        writeln!(f, "  - {client}: a lock of {file} was not reclaimed")?;
    }
    match violations {
        Some(0) => {}
        Some(violations) => writeln!(f, "  ✗ grace was violated {violations} times")?,
        None => writeln!(f, "  ✗ grace was not audited")?,
    }
    if let Some(error) = vip["notified"]["error"].as_str().map(on_one_line) {
        writeln!(f, "  ✗ its clients were not notified: {error}")?;
    }
    let is_notified = |client: &&Value| client["outcome"] == "notified";
    for client in items(&vip["notified"]["notify"]["clients"]).filter(|client| !is_notified(client))
    {
        let (address, outcome) = (words(&client["client"]), words(&client["outcome"]));
        writeln!(f, "  ✗ {address}: {outcome}: {}", words(&client["reason"]))?;
    }
    if let Some(error) = vip["book_error"].as_str().map(on_one_line) {
        writeln!(f, "  the client book is not up to date: {error}")?;
    }
    Ok(())
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}

/// A text of the other node's report, which escapes names as ours does.
fn words(text: &Value) -> Cow<'_, str> {
    on_one_line(text.as_str().unwrap_or("?"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn whatever_is_not_well_is_named() {
        let report = PairReport {
            schema: PairReport::SCHEMA,
            from: "a".to_owned(),
            to: "b".to_owned(),
            vips: vec!["10.77.0.1".parse().unwrap()],
            steps: vec![Step {
                action: Action::Arm,
                node: "b".to_owned(),
                error: None,
                took_ms: 12.4,
            }],
            release: None,
            takeover: Some(json!({
                "vips": [{
                    "vip": "10.77.0.1",
                    "expected": 2,
                    "missing": [{"client": "10.77.1.2", "file": {"path": null, "ino": 17}}],
                    "window": {"lockd": {"violations": 1}},
                    "notified": {"error": null, "notify": {"clients": [
                        {"client": "10.77.1.1", "outcome": "notified"},
                        {"client": "10.77.1.2", "outcome": "unreachable", "reason": "silence"},
                    ]}},
                }],
                "still_waiting": [],
                "uncovered": [
                    {"device": {"name": "eth9"}, "reason": "no room", "failed": true},
                ],
            })),
            reclaimed_here: None,
            situation: None,
            took_ms: 1.0,
        };
        let text = report.to_string();
        for line in [
            "✓ grace started on b, 12 ms",
            "✗ 10.77.0.1: 1 of 2 locks reclaimed",
            "- 10.77.1.2: a lock of inode 17 was not reclaimed",
            "✗ grace was violated 1 times",
            "✗ 10.77.1.2: unreachable: silence",
            "packets that arrive on eth9: no room",
        ] {
            assert!(text.contains(line), "{line:?} in:\n{text}");
        }
        assert!(!text.contains("10.77.1.1"), "{text}");
    }
}
