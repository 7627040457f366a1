//! `nlmfo check`: what this kernel and node support.

use std::fmt::Write;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::anyhow;
use serde::Serialize;

use super::require_root;
use crate::causes::chain;
use crate::cli::{CheckArgs, StateArgs};
use crate::exit::{Exit, Failure};
use crate::failover::services::{Purpose, look};
use crate::grace::gate;
use crate::kernel::preflight::{Capability, Check, Facts, Need};
use crate::kernel::state_layout;
use crate::kernel::unlock_bug::Verdict;
use crate::notify::nfs_conf;
use crate::notify::state_dir::StateDir;
use crate::observe::programs::{probed_functions, state_functions};
use crate::{output, runtime};

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

/// What was found.
pub struct Found {
    pub facts: Facts,
    /// What the kernel and its configuration give.
    pub kernel: Vec<Check>,
    pub services: Vec<Check>,
}

/// Looks at the kernel and at the services, which get `wait` to become ready.
pub fn look(vips: &[IpAddr], state: &StateArgs, wait: Option<Duration>) -> Result<Found, Failure> {
    let functions = probed_functions().chain(gate::probed_functions());
    let functions: Vec<&str> = functions.chain(state_functions()).collect();
    let facts = Facts::gather(&functions);
    let mut kernel = facts.checks();
    let of_nfs4: Vec<String> = (state_functions())
        .map(|function| format!("function {function}"))
        .collect();
    for check in kernel
        .iter_mut()
        .filter(|check| of_nfs4.contains(&check.name))
    {
        (check.need, check.purpose) = (Need::Option, SEEING_NFS4);
    }
    kernel.push(nfs4_layouts(&facts));
    let services = services(vips, state, wait, &facts)?;
    Ok(Found {
        facts,
        kernel,
        services,
    })
}

pub fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    require_root()?;
    let Found {
        facts,
        kernel,
        services,
    } = look(&args.vip, &args.state, args.wait_services)?;
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

const SEEING_NFS4: &str = "seeing what NFSv4 clients hold";

/// Whether nfsd keeps its NFSv4 state where the programs look for it.
fn nfs4_layouts(facts: &Facts) -> Check {
    let rests_on = [
        ("symbols", &facts.symbols),
        ("btf", &facts.btf),
        ("nfsd", &facts.nfsd),
    ];
    Check {
        name: "nfs4_layouts".to_owned(),
        purpose: SEEING_NFS4,
        need: Need::Option,
        capability: Capability::unless(&rests_on, || match state_layout::load() {
            Ok(_) => Capability::Available,
            Err(error) => Capability::missing(
                chain(&error),
                "give failover --nfs 3, which leaves NFSv4 out, and report this line",
            ),
        }),
    }
}

/// Checks this node's services.
fn services(
    vips: &[IpAddr],
    state: &StateArgs,
    wait: Option<Duration>,
    facts: &Facts,
) -> Result<Vec<Check>, Failure> {
    let purpose = Purpose {
        vips: vips.to_vec(),
        exports_now: false,
        unseen: [
            ("symbols", &facts.symbols),
            ("btf", &facts.btf),
            ("kernel_reads", &facts.kernel_reads),
            ("privileges", &facts.privileges),
        ]
        .into_iter()
        .find_map(|(name, capability)| (!capability.is_available()).then_some(name)),
    };
    let state = StateDir::new(&state.state_dir);
    let max_wait = wait.unwrap_or_default();
    runtime::run(look::wait(&state, &purpose, max_wait)).map_err(|error| {
        anyhow!(error)
            .context("starting the asynchronous runtime")
            .into()
    })
}

/// Whether nfs-utils' sm-notify leaves the kernel's grace alone.
fn grace_is_kept() -> Check {
    let remedy = || "set lift-grace=n in section [sm-notify] of /etc/nfs.conf".to_owned();
    let capability = match nfs_conf::lifts_grace() {
        Ok(false) => Capability::Available,
        Ok(true) => Capability::Missing {
            reason: "sm-notify ends lockd's grace early for the whole node (nfs.conf)".to_owned(),
            remedy: remedy(),
        },
        Err(error) => Capability::Missing {
            reason: format!("cannot read nfs.conf: {error}"),
            remedy: remedy(),
        },
    };
    Check {
        name: "lift_grace".to_owned(),
        purpose: "full kernel grace after sm-notify",
        need: Need::Option,
        capability,
    }
}
