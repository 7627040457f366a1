//! What a failover of two nodes did: one value for JSON and for text.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use super::Stage;
use crate::failover::report::ReleaseReport;
use crate::failover::takeover_report::TakeoverReport;
use crate::foreign::on_one_line;

/// `nlmfo failover --to HOST --json`: one object, `schema` "nlmfo.pair/1".
#[derive(Debug, Serialize)]
pub struct PairReport {
    pub schema: &'static str,
    pub from: String,
    pub to: String,
    pub vips: Vec<IpAddr>,
    /// In the order in which they were done; the last ones may be remedies.
    pub steps: Vec<Step>,
    /// What was released here.
    pub release: Option<ReleaseReport>,
    /// The takeover's report from the other node, `schema` "nlmfo.takeover/1".
    pub takeover: Option<Value>,
    /// The takeover on this node, if the locks came back.
    pub taken_back: Option<TakeoverReport>,
    /// Where things stand and what to do, if it did not go through.
    pub standing: Option<String>,
    pub took_ms: f64,
}

/// A step that was done, or tried.
#[derive(Debug, Serialize)]
pub struct Step {
    pub stage: Stage,
    pub node: String,
    pub error: Option<String>,
    pub took_ms: f64,
}

impl PairReport {
    pub const SCHEMA: &str = "nlmfo.pair/1";
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Stage::Check => "services looked at",
            Stage::Arm => "grace opened",
            Stage::Release => "locks released",
            Stage::HandOver => "handed over",
            Stage::TakeOver => "taken over",
            Stage::EndThere => "grace ended",
            Stage::TakeBack => "taken back",
        })
    }
}

impl fmt::Display for PairReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            let (mark, stage, node) = match step.error {
                None => ("✓", step.stage, &step.node),
                Some(_) => ("✗", step.stage, &step.node),
            };
            write!(f, "{mark} {stage} on {node}, {:.0} ms", step.took_ms)?;
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
        if let Some(taken_back) = &self.taken_back {
            write!(f, "{taken_back}")?;
        }
        if let Some(standing) = &self.standing {
            writeln!(f, "{standing}")?;
        }
        Ok(())
    }
}

/// The other node's report in short: it may be of a later version.
fn write_takeover(f: &mut fmt::Formatter<'_>, takeover: &Value) -> fmt::Result {
    for vip in items(&takeover["vips"]) {
        write_vip(f, vip)?;
    }
    for waiting in items(&takeover["still_waiting"]).map(words) {
        writeln!(f, "  ✗ {waiting}: it may have been granted in the window")?;
    }
    let failed = |device: &&Value| device["failed"] == true;
    for device in items(&takeover["uncovered"]).filter(failed) {
        let (name, reason) = (words(&device["device"]["name"]), words(&device["reason"]));
        writeln!(
            f,
            "  ✗ not held to grace: what comes in at {name}: {reason}"
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
    writeln!(f, "{mark} {address}: {back} of {expected} locks are back")?;
    for lock in items(&vip["missing"]) {
        let file = match lock["file"]["path"].as_str() {
            Some(path) => on_one_line(path).into_owned(),
            None => format!("inode {}", lock["file"]["ino"]),
        };
        let client = words(&lock["client"]);
        writeln!(f, "  - {client}: a lock of {file} is missing")?;
    }
    match violations {
        Some(0) => {}
        Some(violations) => writeln!(f, "  ✗ grace was violated {violations} times")?,
        None => writeln!(f, "  ✗ nobody can tell whether grace was held")?,
    }
    if let Some(error) = vip["told"]["error"].as_str().map(on_one_line) {
        writeln!(f, "  ✗ its clients were not told to reclaim: {error}")?;
    }
    let is_told = |client: &&Value| client["outcome"] == "told";
    for client in items(&vip["told"]["notify"]["clients"]).filter(|client| !is_told(client)) {
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

/// What stands in the other node's report, which escapes names as ours does.
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
                stage: Stage::Arm,
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
                    "told": {"error": null, "notify": {"clients": [
                        {"client": "10.77.1.1", "outcome": "told"},
                        {"client": "10.77.1.2", "outcome": "unreachable", "reason": "silence"},
                    ]}},
                }],
                "still_waiting": [],
                "uncovered": [
                    {"device": {"name": "eth9"}, "reason": "no room", "failed": true},
                ],
            })),
            taken_back: None,
            standing: None,
            took_ms: 1.0,
        };
        let text = report.to_string();
        for line in [
            "✓ grace opened on b, 12 ms",
            "✗ 10.77.0.1: 1 of 2 locks are back",
            "- 10.77.1.2: a lock of inode 17 is missing",
            "✗ grace was violated 1 times",
            "✗ 10.77.1.2: unreachable: silence",
            "what comes in at eth9: no room",
        ] {
            assert!(text.contains(line), "{line:?} in:\n{text}");
        }
        assert!(!text.contains("10.77.1.1"), "{text}");
    }
}
