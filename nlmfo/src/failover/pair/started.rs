//! How the start of a server on the other node ended.

use serde_json::Value;

use super::rsh::Finished;
use crate::exit::Exit;
use crate::failover::whole::coverage::Part;
use crate::foreign::Shown;

/// Whether the server serves there, and how the command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct There {
    /// The server serves there.
    pub serves: bool,
    pub exit: Exit,
}

/// `code`: the exit status of nlmfo there; none if it is not known.
pub fn judge(code: Option<i32>, has_report: bool) -> There {
    let serves = has_report && matches!(code, Some(0 | 3 | 5));
    There {
        serves,
        exit: match (serves, code) {
            (true, Some(0)) => Exit::Done,
            (true, Some(5)) => Exit::Incomplete,
            _ => Exit::NotConfirmed,
        },
    }
}

/// What a command on the other node printed, on one line.
pub fn said(finished: &Finished) -> String {
    let lines = finished.stdout.lines();
    let lines = lines.filter(|line| !line.starts_with("✓"));
    let out = lines.collect::<Vec<_>>().join("; ");
    let text = [&*finished.stderr, &*out].join(" ");
    text.trim().shown().to_string()
}

/// What its clients did not reclaim, by the report of the other node.
pub fn missing(report: &Value) -> Part {
    serde_json::from_value(report["missing"].clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::failover::record::sample::lock;

    #[test]
    fn only_a_report_says_that_it_serves_there() {
        let there = |serves, exit| There { serves, exit };
        for (code, has_report, expected) in [
            (Some(0), true, there(true, Exit::Done)),
            (Some(5), true, there(true, Exit::Incomplete)),
            (Some(3), true, there(true, Exit::NotConfirmed)),
            (Some(1), false, there(false, Exit::NotConfirmed)),
            (Some(4), false, there(false, Exit::NotConfirmed)),
            // It serves, or not: nobody said.
            (Some(0), false, there(false, Exit::NotConfirmed)),
            // ssh was cut off.
            (Some(255), false, there(false, Exit::NotConfirmed)),
            (None, false, there(false, Exit::NotConfirmed)),
        ] {
            assert_eq!(judge(code, has_report), expected, "{code:?} {has_report}");
        }
    }

    #[test]
    fn what_is_missing_there_is_named() {
        let part = Part {
            locks: vec![lock("10.77.0.1", 0, 9)],
            ..Part::default()
        };
        let said = missing(&json!({ "missing": part })).to_string();
        assert!(
            said.contains("not reclaimed") && said.contains("10.77.0.1"),
            "{said}"
        );
        assert_eq!(missing(&Value::Null), Part::default());
    }
}
