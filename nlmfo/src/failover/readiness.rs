//! Whether this kernel and node have what a failover needs.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::anyhow;

use super::services::{Purpose, look};
use crate::causes::chain;
use crate::exit::Failure;
use crate::grace::gate;
use crate::kernel::preflight::{Capability, Check, Facts, Need};
use crate::kernel::state_layout;
use crate::notify::nfs_conf;
use crate::notify::state_dir::StateDir;
use crate::observe::programs::{probed_functions, state_functions};
use crate::runtime;

const SEEING_NFS4: &str = "seeing what NFSv4 clients hold";

/// What was found.
pub struct Readiness {
    pub facts: Facts,
    /// What the kernel and its configuration provide.
    pub kernel: Vec<Check>,
    pub services: Vec<Check>,
}

impl Readiness {
    /// Looks at the kernel and at the services, which get `wait` to become ready for these VIPs.
    ///
    /// # Errors
    /// If the asynchronous runtime cannot be started.
    pub fn look(vips: &[IpAddr], state: &StateDir, wait: Duration) -> Result<Self, Failure> {
        let functions = probed_functions().chain(gate::probed_functions());
        let functions: Vec<&str> = functions.chain(state_functions()).collect();
        let facts = Facts::gather(&functions);
        let mut kernel = facts.checks();
        let of_nfs4: Vec<String> = (state_functions())
            .map(|function| format!("function {function}"))
            .collect();
        for check in &mut kernel {
            if of_nfs4.contains(&check.name) {
                (check.need, check.purpose) = (Need::Option, SEEING_NFS4);
            }
        }
        kernel.push(nfs4_layouts(&facts));
        let purpose = Purpose {
            vips: vips.to_vec(),
            exports_now: false,
            unseen: unseen(&facts),
        };
        let services = runtime::run(look::wait(state, &purpose, wait))
            .map_err(|error| anyhow!(error).context("starting the asynchronous runtime"))?;
        Ok(Readiness {
            facts,
            kernel,
            services,
        })
    }
}

/// What the kernel lacks, so that lockd's sockets cannot be read.
fn unseen(facts: &Facts) -> Option<&'static str> {
    let needed = [
        ("symbols", &facts.symbols),
        ("btf", &facts.btf),
        ("kernel_reads", &facts.kernel_reads),
        ("privileges", &facts.privileges),
    ];
    let mut needed = needed.into_iter();
    needed.find_map(|(name, capability)| (!capability.is_available()).then_some(name))
}

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
                "use `failover --nfs 3`, which ignores NFSv4, and report this line",
            ),
        }),
    }
}

/// Whether nfs-utils' sm-notify leaves the kernel's grace alone.
pub fn grace_is_kept() -> Check {
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
