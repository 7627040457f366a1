//! `nlmfo check`: what this kernel and node support.

use std::fmt::Write;

use serde::Serialize;

use super::require_root;
use crate::cli::CheckArgs;
use crate::exit::{Exit, Failure};
use crate::failover::readiness::{Readiness, grace_is_kept};
use crate::kernel::preflight::{Check, Facts};
use crate::kernel::unlock_bug::Verdict;
use crate::notify::state_dir::StateDir;
use crate::output;

/// The JSON of `nlmfo check`.
#[derive(Serialize)]
struct Checked<'a> {
    schema: &'static str,
    /// Whether this node can do and verify a failover.
    ready: bool,
    checks: &'a [Check],
    #[serde(flatten)]
    facts: &'a Facts,
}

pub fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    require_root()?;
    let state = StateDir::new(&args.state.state_dir);
    let wait = args.wait_services.unwrap_or_default();
    let Readiness {
        facts,
        kernel,
        services,
    } = Readiness::look(&args.vip, &state, wait)?;
    let mut checks = [kernel, services].concat();
    checks.push(grace_is_kept());
    let ready = !checks.iter().any(Check::is_failed);
    if args.json {
        output::list_json(&Checked {
            schema: "nlmfo.check/1",
            ready,
            checks: &checks,
            facts: &facts,
        })?;
    } else {
        output::list(|out| {
            writeln!(out, "kernel {}", facts.release)?;
            // Consequences are left out: their cause is in the list.
            for check in checks.iter().filter(|check| check.is_known()) {
                writeln!(out, "{check}")?;
            }
            if let Verdict::Fixed { proof } = &facts.unlock_ip {
                writeln!(out, "unlock_ip works on this kernel: {proof}")?;
            }
            out.write_str(match ready {
                true => "✓ this node can do and verify a failover\n",
                false => "✗ this node cannot do and verify a failover; fix the items above first\n",
            })
        })?;
    }
    Ok(match ready {
        true => Exit::Done,
        false => Exit::Unsupported,
    })
}
