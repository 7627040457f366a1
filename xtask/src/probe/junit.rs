//! The matrix as `JUnit` XML: a suite for each kernel, a case for each check. A failure by
//! a known bug counts as skipped, as `JUnit` has no word for it; the message names the bug.

use std::time::Duration;

use anyhow::{Context as _, Result};
use quick_junit::{NonSuccessKind, Report, TestCase, TestCaseStatus, TestSuite};

use super::matrix::{Kernel, Matrix, Outcome};
use nlmfo_common::probe::{Checked, Verdict};

pub fn xml(matrix: &Matrix) -> Result<String> {
    let mut report = Report::new("nlmfo probe");
    report.add_test_suites(matrix.kernels.iter().map(suite));
    report.to_string().context("write JUnit XML")
}

fn suite(kernel: &Kernel) -> TestSuite {
    let mut suite = TestSuite::new(kernel.release.clone());
    match &kernel.outcome {
        Outcome::Report(report) => {
            suite.set_time(duration(report.seconds));
            suite.add_property(("nlmfo", report.nlmfo.as_str()));
            suite.add_test_cases(report.checks.iter().map(|check| case(kernel, check)));
        }
        Outcome::Error(error) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Error);
            status.set_message(error.lines().next().unwrap_or_default());
            status.set_description(error.as_str());
            suite.add_test_case(TestCase::new("report", status));
        }
    }
    suite
}

fn case(kernel: &Kernel, check: &Checked) -> TestCase {
    let status = match (check.verdict, &check.known) {
        (Verdict::Pass, _) => TestCaseStatus::success(),
        (Verdict::Unsupported, _) => skipped(format!("unsupported: {}", check.reason())),
        (Verdict::Fail, Some(known)) => skipped(format!(
            "known bug {}: {}; seen: {}",
            known.id,
            known.title,
            check.reason()
        )),
        (Verdict::Fail, None) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(check.reason());
            status
        }
    };
    let mut case = TestCase::new(check.name.clone(), status);
    case.set_classname(format!("nlmfo.probe.{}", kernel.release));
    case.set_time(duration(check.seconds));
    case.add_property(("proves", check.proves.as_str()));
    case
}

fn skipped(message: String) -> TestCaseStatus {
    let mut status = TestCaseStatus::skipped();
    status.set_message(message);
    status
}

/// A report's time, whatever stands there.
fn duration(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::super::matrix::tests::{sample, without_a_report};
    use super::*;

    #[test]
    fn each_kernel_is_a_suite_and_each_check_a_case() {
        let mut matrix = sample();
        matrix.kernels.push(without_a_report());
        let text = xml(&matrix).unwrap();
        let read = Report::deserialize_from_str(&text).unwrap();
        let counts: Vec<(&str, usize, usize, usize, usize)> = (read.test_suites.iter())
            .map(|s| (s.name.as_str(), s.tests, s.failures, s.errors, s.skipped))
            .collect();
        assert_eq!(
            counts,
            [
                ("6.1.0-50-cloud-amd64", 4, 0, 0, 3),
                ("7.3.4+deb13-cloud-amd64", 4, 1, 0, 0),
                ("7.4.0", 1, 0, 1, 0),
            ]
        );
        for expected in [
            "known bug CVE-2026-93231: unlock_ip reports success and releases nothing",
            "unsupported: nfsd&apos;s netlink family has no such command",
            "the deadline passed",
        ] {
            assert!(text.contains(expected), "{expected}\n{text}");
        }
    }
}
