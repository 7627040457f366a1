//! What a failover of two nodes did: one value for JSON and for text.

use std::fmt;
use std::net::IpAddr;

use serde::Serialize;
use serde_json::Value;

use super::Stage;
use crate::failover::report::ReleaseReport;
use crate::failover::takeover_report::TakeoverReport;

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
        for vip in self.takeover.iter().flat_map(vips) {
            write_taken(f, vip)?;
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

fn vips(takeover: &Value) -> impl Iterator<Item = &Value> {
    takeover["vips"].as_array().into_iter().flatten()
}

/// The other node's report in short: it may be of a later version.
fn write_taken(f: &mut fmt::Formatter<'_>, vip: &Value) -> fmt::Result {
    let address = vip["vip"].as_str().unwrap_or("?");
    let missing = vip["missing"].as_array().map_or(&[][..], Vec::as_slice);
    let expected = vip["expected"].as_u64().unwrap_or_default() as usize;
    let back = expected.saturating_sub(missing.len());
    let violations = vip["window"]["lockd"]["violations"].as_u64();
    let mark = match (missing, violations) {
        ([], Some(0)) => "✓",
        _ => "✗",
    };
    writeln!(f, "{mark} {address}: {back} of {expected} locks are back")?;
    for lock in missing {
        let file = match lock["file"]["path"].as_str() {
            Some(path) => path.to_owned(),
            None => format!("inode {}", lock["file"]["ino"]),
        };
        let client = lock["client"].as_str().unwrap_or("?");
        writeln!(f, "  - {client}: a lock of {file} is missing")?;
    }
    if let Some(violations @ 1..) = violations {
        writeln!(f, "  ✗ grace was violated {violations} times")?;
    }
    Ok(())
}
