//! What the checks found as TAP 13 and as JUnit XML.

use std::fmt::Write as _;
use std::time::Duration;

use nlmfo_common::probe::{Checked, Report, Verdict};
use quick_junit::{NonSuccessKind, TestCase, TestCaseStatus, TestSuite};

/// JUnit XML, one test suite named after the kernel.
pub fn junit(report: &Report) -> Result<String, quick_junit::SerializeError> {
    let mut suite = TestSuite::new(format!("nlmfo probe on {}", report.kernel));
    suite.set_time(Duration::from_secs_f64(report.seconds));
    for check in &report.checks {
        let detail = check.detail.as_deref().unwrap_or_default();
        let status = match check.verdict {
            Verdict::Pass => TestCaseStatus::success(),
            Verdict::Fail => {
                let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
                status.set_message(detail);
                if let Some(known) = &check.known {
                    status.set_type(known.id.as_str());
                    status.set_description(format!("{known}"));
                }
                status
            }
            Verdict::Unsupported => {
                let mut status = TestCaseStatus::skipped();
                status.set_message(detail);
                status
            }
        };
        let mut case = TestCase::new(check.name.as_str(), status);
        case.set_classname("nlmfo.probe");
        case.set_time(Duration::from_secs_f64(check.seconds));
        suite.add_test_case(case);
    }
    let mut suites = quick_junit::Report::new("nlmfo probe");
    suites.add_test_suite(suite);
    suites.to_string()
}

/// The two lines that TAP 13 begins with.
pub fn tap_head(checks: usize) -> String {
    format!("TAP version 13\n1..{checks}\n")
}

/// One check in TAP 13; `number` counts from 1.
pub fn tap(number: usize, check: &Checked) -> String {
    let Checked { name, proves, .. } = check;
    let detail = check.detail.as_deref().unwrap_or_default();
    match check.verdict {
        Verdict::Pass => format!("ok {number} - {name}: {proves}\n"),
        Verdict::Unsupported => {
            format!("ok {number} - {name} # SKIP {}\n", one_line(detail))
        }
        Verdict::Fail => {
            let mut text = format!("not ok {number} - {name}: {proves}\n  ---\n");
            // A JSON string is a YAML one.
            let mut field = |key: &str, value: &str| {
                let _ = writeln!(text, "  {key}: {}", serde_json::json!(value));
            };
            field("message", detail);
            if let Some(known) = &check.known {
                field("known", &known.id);
                field("title", &known.title);
                field("evidence", &known.evidence);
            }
            text + "  ...\n"
        }
    }
}

/// In a TAP line, `#` begins a directive.
fn one_line(text: &str) -> String {
    text.replace('\n', " ").replace('#', "\\#")
}

#[cfg(test)]
mod tests {
    use nlmfo_common::probe::{Known, SCHEMA};

    use super::*;

    fn check(verdict: Verdict, detail: Option<&str>) -> Checked {
        Checked {
            name: "unlock-procfs-ipv4".into(),
            proves: "unlock_ip releases a VIP's locks".into(),
            verdict,
            detail: detail.map(str::to_owned),
            known: None,
            seconds: 0.5,
        }
    }

    fn known(mut check: Checked) -> Checked {
        check.known = Some(Known {
            id: "CVE-2026-93231".into(),
            title: "releases nothing".into(),
            evidence: "seen".into(),
        });
        check
    }

    #[test]
    fn tap_tells_pass_skip_and_fail() {
        assert_eq!(
            tap(1, &check(Verdict::Pass, None)),
            "ok 1 - unlock-procfs-ipv4: unlock_ip releases a VIP's locks\n"
        );
        assert_eq!(
            tap(2, &check(Verdict::Unsupported, Some("no\nnetlink #16"))),
            "ok 2 - unlock-procfs-ipv4 # SKIP no netlink \\#16\n"
        );
        assert_eq!(
            tap(3, &known(check(Verdict::Fail, Some("4 \"stay\"")))),
            "not ok 3 - unlock-procfs-ipv4: unlock_ip releases a VIP's locks\n  ---\n  \
             message: \"4 \\\"stay\\\"\"\n  known: \"CVE-2026-93231\"\n  \
             title: \"releases nothing\"\n  evidence: \"seen\"\n  ...\n"
        );
    }

    #[test]
    fn junit_counts_failures_and_skips() {
        let report = Report {
            schema: SCHEMA.into(),
            kernel: "6.1".into(),
            source: "6.1.170".into(),
            nlmfo: "0".into(),
            seconds: 1.0,
            checks: vec![
                check(Verdict::Pass, None),
                known(check(Verdict::Fail, Some("a < b"))),
                check(Verdict::Unsupported, Some("old")),
            ],
        };
        let xml = junit(&report).unwrap();
        assert!(xml.contains(r#"tests="3""#) && xml.contains(r#"failures="1""#));
        assert!(xml.contains(r#"<failure message="a &lt; b" type="CVE-2026-93231">"#));
        assert!(xml.contains(r#"<skipped message="old"/>"#));
    }
}
