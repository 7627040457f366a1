//! Kernel × check: the table, its notes, and whether anything is unexpected.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use serde::Serialize;

use nlmfo_common::probe::{Checked, Known, Report, Verdict};

/// The result of one kernel.
#[derive(Clone, Debug, Serialize)]
pub struct Kernel {
    /// How it was asked for.
    pub name: String,
    /// As `uname -r` prints it.
    pub release: String,
    #[serde(flatten)]
    pub outcome: Outcome,
}

#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    Report(Report),
    /// Why there is no report.
    Error(String),
}

impl Kernel {
    pub fn report(&self) -> Option<&Report> {
        match &self.outcome {
            Outcome::Report(report) => Some(report),
            Outcome::Error(_) => None,
        }
    }

    /// A table's heading: a release is long, and may tell an ABI and no version.
    fn heading(&self) -> &str {
        self.report().map_or(&self.release, |report| &report.source)
    }

    fn check(&self, name: &str) -> Option<&Checked> {
        self.report()?.checks.iter().find(|c| c.name == name)
    }
}

/// All kernels of one run, in the order in which they were named.
///
/// Its text is Markdown that can be read on a terminal as it is.
#[derive(Clone, Debug, Serialize)]
pub struct Matrix {
    pub schema: &'static str,
    pub kernels: Vec<Kernel>,
}

impl Matrix {
    pub fn new(kernels: Vec<Kernel>) -> Self {
        Matrix {
            schema: "nlmfo.probe-matrix/1",
            kernels,
        }
    }

    /// Failures that are no known bugs, checks that a kernel's report lacks while
    /// another's has them, and kernels without a report.
    pub fn unexpected(&self) -> usize {
        let names = self.checks();
        (self.kernels.iter())
            .map(|kernel| match kernel.report() {
                None => 1,
                Some(_) => (names.iter())
                    .filter(|name| (kernel.check(name)).is_none_or(Checked::failed_unexpectedly))
                    .count(),
            })
            .sum()
    }

    /// The names of all checks, each where its first report has it.
    fn checks(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for check in self
            .kernels
            .iter()
            .filter_map(Kernel::report)
            .flat_map(|r| &r.checks)
        {
            if !names.contains(&&*check.name) {
                names.push(&check.name);
            }
        }
        names
    }

    fn rows<'a>(&'a self, notes: &mut Notes<'a>) -> Vec<Vec<String>> {
        let heading = ["check".to_owned()].into_iter();
        let headings = self.kernels.iter().map(|k| k.heading().to_owned());
        let mut rows = vec![heading.chain(headings).collect()];
        for name in self.checks() {
            let mut row = vec![name.to_owned()];
            for kernel in &self.kernels {
                row.push(match (kernel.check(name), &kernel.outcome) {
                    (Some(check), _) => notes.cell(check),
                    (None, Outcome::Error(error)) => notes.noted("none", first_line(error)),
                    (None, _) => notes.noted("FAIL", "the report lacks this check"),
                });
            }
            rows.push(row);
        }
        rows
    }
}

/// What a table has no room for.
#[derive(Default)]
struct Notes<'a> {
    numbered: Vec<String>,
    known: BTreeMap<&'a str, &'a Known>,
}

impl<'a> Notes<'a> {
    fn cell(&mut self, check: &'a Checked) -> String {
        match (check.verdict, &check.known) {
            (Verdict::Pass, _) => "ok".to_owned(),
            (Verdict::Fail, Some(known)) => {
                self.known.insert(&known.id, known);
                format!("known {}", known.id)
            }
            (Verdict::Fail, None) => self.noted("FAIL", check.reason()),
            (Verdict::Unsupported, _) => self.noted("—", check.reason()),
        }
    }

    /// The cell with its note's number; what was said before has its number.
    fn noted(&mut self, cell: &str, reason: &str) -> String {
        let reason = one_line(reason);
        let number = self.numbered.iter().position(|note| *note == reason);
        let number = number.unwrap_or_else(|| {
            self.numbered.push(reason);
            self.numbered.len() - 1
        });
        format!("{cell} [{}]", number + 1)
    }
}

/// What went wrong; what follows it is what a machine has said.
fn first_line(error: &str) -> &str {
    error.lines().next().unwrap_or_default()
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut notes = Notes::default();
        let mut rows = self.rows(&mut notes);
        if rows.len() == 1 {
            // No check was made anywhere.
            rows.clear();
        }
        let width = |column: usize| {
            let cells = rows.iter().map(|row| row[column].chars().count());
            cells.max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..=self.kernels.len()).map(width).collect();
        for (number, row) in rows.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                write!(f, "| {cell:width$} ")?;
            }
            f.write_str("|\n")?;
            if number == 0 {
                for width in &widths {
                    write!(f, "|{:-<1$}", "", width + 2)?;
                }
                f.write_str("|\n")?;
            }
        }
        if !rows.is_empty() {
            f.write_char('\n')?;
        }
        for (number, note) in notes.numbered.iter().enumerate() {
            writeln!(f, "{}. {note}", number + 1)?;
        }
        if !notes.numbered.is_empty() {
            f.write_char('\n')?;
        }
        for (id, known) in &notes.known {
            writeln!(f, "- {id}: {} ({})", known.title, known.evidence)?;
        }
        for kernel in &self.kernels {
            writeln!(
                f,
                "- {}: {} ({}): {}",
                kernel.heading(),
                kernel.release,
                kernel.name,
                kernel.outcome
            )?;
        }
        Ok(())
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = match self {
            Outcome::Report(report) => report,
            Outcome::Error(error) => return write!(f, "no report: {}", first_line(error)),
        };
        let count = |is: &dyn Fn(&Checked) -> bool| report.checks.iter().filter(|c| is(c)).count();
        write!(
            f,
            "{} passed, {} failed, {} failed by known bugs, {} unsupported, in {:.0} s",
            count(&|check| check.verdict == Verdict::Pass),
            count(&Checked::failed_unexpectedly),
            count(&|check| check.verdict == Verdict::Fail && check.known.is_some()),
            count(&|check| check.verdict == Verdict::Unsupported),
            report.seconds
        )
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::probe::report::parse;

    /// Reports as two kernels might give them.
    pub fn sample() -> Matrix {
        let report = |json: &str| Outcome::Report(parse(json.as_bytes()).unwrap());
        let kernel = |name: &str, release: &str, outcome| Kernel {
            name: name.into(),
            release: release.into(),
            outcome,
        };
        Matrix::new(vec![
            kernel(
                "bookworm",
                "6.1.0-50-cloud-amd64",
                report(include_str!("samples/6.1.json")),
            ),
            kernel(
                "trixie-backports",
                "7.3.4+deb13-cloud-amd64",
                report(include_str!("samples/7.3.json")),
            ),
        ])
    }

    pub fn without_a_report() -> Kernel {
        Kernel {
            name: "./bzImage".into(),
            release: "7.4.0".into(),
            outcome: Outcome::Error("the deadline passed after 600 s\n[    0.0] Linux".into()),
        }
    }

    #[test]
    fn the_table_is_markdown_with_notes() {
        assert_eq!(
            sample().to_string(),
            "\
| check               | 6.1.176              | 7.3.4    |
|---------------------|----------------------|----------|
| unlock-procfs-ipv4  | known CVE-2026-93231 | ok       |
| unlock-netlink-ipv4 | — [1]                | ok       |
| unlock-netlink-ipv6 | — [1]                | FAIL [2] |
| free-all            | ok                   | ok       |

1. nfsd's netlink family has no such command
2. fd77::2 | lost 1 lock of 3

- CVE-2026-93231: unlock_ip reports success and releases nothing (fixed in 6.1.191)
- 6.1.176: 6.1.0-50-cloud-amd64 (bookworm): 1 passed, 0 failed, 1 failed by known bugs, 2 unsupported, in 41 s
- 7.3.4: 7.3.4+deb13-cloud-amd64 (trixie-backports): 3 passed, 1 failed, 0 failed by known bugs, 0 unsupported, in 40 s
"
        );
    }

    #[test]
    fn a_kernel_without_a_report_is_shown_and_counts() {
        let mut matrix = sample();
        assert_eq!(matrix.unexpected(), 1);
        matrix.kernels.push(without_a_report());
        assert_eq!(matrix.unexpected(), 2);
        let text = matrix.to_string();
        assert!(
            text.contains("| free-all            | ok                   | ok       | none [1] |"),
            "{text}"
        );
        assert!(
            text.contains("1. the deadline passed after 600 s\n"),
            "{text}"
        );
    }

    #[test]
    fn a_check_that_one_report_lacks_counts() {
        let mut matrix = sample();
        let Outcome::Report(report) = &mut matrix.kernels[0].outcome else {
            panic!("the first sample has a report");
        };
        report.checks.pop();
        assert_eq!(matrix.unexpected(), 2);
        assert!(matrix.to_string().contains("the report lacks this check"));
    }
}
