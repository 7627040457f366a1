//! Adds up the test results of all steps.

use std::{fmt, ops::AddAssign};

/// How many checks passed, failed, and were skipped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub passed: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Tally {
    pub const PASSED: Self = Self {
        passed: 1,
        failed: 0,
        skipped: 0,
    };
    pub const FAILED: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };
    pub const SKIPPED: Self = Self {
        passed: 0,
        failed: 0,
        skipped: 1,
    };

    /// The counts of a result line of libtest or libtest-mimic:
    /// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; …`.
    pub fn of_result_line(line: &str) -> Option<Self> {
        let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
        let count = |what: &str| {
            counts.split("; ").find_map(|part| {
                let (number, name) = part.split_once(' ')?;
                (name == what).then(|| number.parse().ok())?
            })
        };
        Some(Self {
            passed: count("passed")?,
            failed: count("failed")?,
            skipped: count("ignored")?,
        })
    }

    /// The counts of a whole program. A program that failed without a failed test did not build or
    /// crashed: that is one failure.
    pub fn of_tests(output: impl IntoIterator<Item = Self>, ended_well: bool) -> Self {
        let mut sum = Self::default();
        for tally in output {
            sum += tally;
        }
        if !ended_well && sum.failed == 0 {
            sum += Self::FAILED;
        }
        sum
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl fmt::Display for Tally {
    /// `12 passed, 0 failed`, with `, 3 skipped` where there are any.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)?;
        if self.skipped > 0 {
            write!(f, ", {} skipped", self.skipped)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_lines_are_read_and_others_are_not() {
        let line = "test result: FAILED. 12 passed; 2 failed; 3 ignored; 0 measured; \
                    1 filtered out; finished in 0.52s";
        let read = Tally {
            passed: 12,
            failed: 2,
            skipped: 3,
        };
        assert_eq!(Tally::of_result_line(line), Some(read));
        for other in [
            "test lab::topology ... ok",
            "test result: ok.",
            "test result: ok. many passed; 0 failed; 0 ignored",
            "",
        ] {
            assert_eq!(Tally::of_result_line(other), None, "{other:?}");
        }
    }

    #[test]
    fn a_bad_end_without_a_failed_test_is_one_failure() {
        assert_eq!(Tally::of_tests([], false), Tally::FAILED);
        assert_eq!(Tally::of_tests([Tally::FAILED], false), Tally::FAILED);
        assert_eq!(Tally::of_tests([Tally::PASSED], true), Tally::PASSED);
    }

    #[test]
    fn the_last_line_names_skipped_ones_only_if_there_are_any() {
        let mut sum = Tally::PASSED;
        assert_eq!(sum.to_string(), "1 passed, 0 failed");
        sum += Tally::SKIPPED;
        assert_eq!(sum.to_string(), "1 passed, 0 failed, 1 skipped");
    }
}
