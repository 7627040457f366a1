//! The checks, in the order in which they run.

mod blocked;
mod free_all;
mod gate;
mod grace;
mod points;
mod ranges;
mod release;
mod unlock;

use anyhow::Result;

use super::fixture::{Family, Fixture};

/// A check that ran to its end.
pub enum Done {
    /// The check passed.
    Shown,
    /// Why this kernel or node cannot show it.
    Unsupported(String),
}

/// The name of the last check, which comes when the testbed is gone.
pub const LEAKS: &str = "leaks";

type Run = Box<dyn Fn(&mut Fixture) -> Result<Done> + Send + Sync>;

/// Something that a kernel should do.
pub struct Check {
    pub name: String,
    /// What a pass proves, as one sentence.
    pub proves: String,
    /// None: [`LEAKS`], which needs no testbed.
    run: Option<Run>,
}

impl Check {
    fn new(
        name: impl Into<String>,
        proves: impl Into<String>,
        run: impl Fn(&mut Fixture) -> Result<Done> + Send + Sync + 'static,
    ) -> Check {
        Check {
            name: name.into(),
            proves: proves.into(),
            run: Some(Box::new(run)),
        }
    }

    /// Runs the check; an error is what was seen instead.
    pub(super) fn run(&self, fixture: &mut Fixture) -> Result<Done> {
        match &self.run {
            Some(run) => run(fixture),
            None => Ok(Done::Shown),
        }
    }
}

/// Every check.
pub fn all() -> Vec<Check> {
    let mut checks = points::checks();
    checks.extend(ranges::checks());
    checks.extend(unlock::checks());
    checks.extend(free_all::checks());
    checks.extend(blocked::checks());
    checks.extend(grace::checks());
    checks.extend(gate::checks());
    checks.extend(release::checks());
    checks.push(Check {
        name: LEAKS.into(),
        proves: "nothing is left behind: modules and their uses, lockd's hosts, eBPF programs, routing rules, \
                 settings; and the kernel logged no fault".into(),
        run: None,
    });
    checks
}

/// One check for each address family.
fn for_both(check: impl Fn(Family) -> Check) -> impl Iterator<Item = Check> {
    Family::BOTH.into_iter().map(check)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_fit_a_command_line() {
        let checks = all();
        let names: BTreeSet<&str> = checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(names.len(), checks.len());
        for name in names {
            let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(name.chars().all(fits), "{name}");
        }
    }

    #[test]
    fn leaks_comes_last() {
        assert_eq!(all().last().unwrap().name, LEAKS);
    }
}
